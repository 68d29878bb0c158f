"""Behind its last attention a model computes the wanted tokens alone: of a prompt that is one, of a verify step all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten

_NAMES = """abs add alias clamp clone contiguous detach div dropout gelu maximum mean minimum mul neg pow reciprocal
    relu rsqrt sigmoid silu sqrt sub tanh to type_as _to_copy layer_norm rms_norm slice"""
_ROW_BY_ROW = frozenset(_NAMES.split())
"""Operators of torch that compute each row by itself, if they are asked for nothing across rows."""


def select_early(graph: fx.Graph) -> None:
    """Moves the selection of the wanted rows of an exported `graph` up, past all that computes each row by itself.

    So the last layer's perceptron and what surrounds it, an eighth of a prompt's arithmetic in a model of six layers,
    is left out for what nobody wants. No bit of what is wanted changes.
    """
    for selection in [node for node in graph.nodes if node.target == _aten.index.Tensor]:
        source, indices = selection.args
        if len(indices) == 2 and indices[0] is None and indices[1].op == "placeholder":
            _move_up(graph, selection, source, indices[1])
    graph.eliminate_dead_code()


def _move_up(graph: fx.Graph, selection: fx.Node, source: fx.Node, rows: fx.Node) -> None:
    is_row_by_row = _tester(source)
    passed: set[fx.Node] = set()
    checks: list[fx.Node] = []
    for node in reversed(graph.nodes):
        its_checks = [user for user in node.users if user.target == _aten._assert_tensor_metadata.default]
        users = node.users.keys() - its_checks
        if all(user is selection or user in passed for user in users) and is_row_by_row(node):
            passed.add(node)
            checks += its_checks
    if source not in passed:
        return
    selected: dict[fx.Node, fx.Node] = {}

    def select(node: fx.Node) -> fx.Node:
        """The same of the wanted rows."""
        if not _has_rows(node, source):
            return node
        if node not in selected:
            if node in passed:
                new = graph.node_copy(node, select)
            else:
                new = graph.call_function(_aten.index.Tensor, (node, [None, rows]))
            new.meta = copy.copy(node.meta) | {"val": node.meta["val"][:, rows.meta["val"]]}
            selected[node] = new
        return selected[node]

    with graph.inserting_before(selection):
        selection.replace_all_uses_with(select(source))
    for check in checks:  # of types, which are as they were
        graph.erase_node(check)


def _tester(source: fx.Node) -> Callable[[fx.Node], bool]:
    """What tells whether a node's rows, each a token's as those of `source`, depend on the same rows of its inputs."""

    def is_row_by_row(node: fx.Node) -> bool:
        inputs = node.all_input_nodes
        return (
            bool(node.users)
            and _has_rows(node, source)
            and all(_has_rows(each, source) or _is_constant(each) for each in inputs)
            and any(_has_rows(each, source) for each in inputs)
            and _keeps_rows(node)
        )

    return is_row_by_row


def _has_rows(node: fx.Node, source: fx.Node) -> bool:
    """Whether it is [1, N, ...] with the N of `source`."""
    value, like = node.meta.get("val"), source.meta["val"]
    if not isinstance(value, torch.Tensor) or value.dim() != like.dim():
        return False
    return _expression(value.shape[1]) == _expression(like.shape[1])


def _is_constant(node: fx.Node) -> bool:
    """Whether it is the same for all batches: no part of its shape depends on one."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not any(isinstance(size, torch.SymInt) for size in value.shape)


def _keeps_rows(node: fx.Node) -> bool:
    """Whether its operator, asked as it is, computes nothing across rows."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    name = node.target._schema.name.removeprefix("aten::")
    match name:
        case "slice":
            return len(node.args) > 1 and node.args[1] not in (1, -2)
        case "mean":
            return list(node.args[1]) == [-1]  # type: ignore[arg-type]
        case "layer_norm" | "rms_norm":
            return len(node.args[1]) == 1  # type: ignore[arg-type]
        case "outrider_native::ragged_attention":
            return False
        case _:
            return name in _ROW_BY_ROW or name.startswith("outrider_native::")


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size
