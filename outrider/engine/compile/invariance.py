"""Batch invariance of an exported graph: a token's logits have the same bits whatever shares its step.

They have if each operator's result for a token depends on that token alone. That is so of our own operators, of those
that move numbers, and of arithmetic that is exactly rounded: whoever computes it must come to the same bits. It is not
so of the functions and sums of torch's libraries, so our own take their places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten

FUNCTIONS = (
    _aten.silu.default,
    _aten.sigmoid.default,
    _aten.gelu.default,
    _aten.tanh.default,
    _aten.cos.default,
    _aten.sin.default,
)
"""In the order of `functions` in native/rows.cpp. Of gelu it is the form with the hyperbolic tangent."""

_OF_SIZES = (torch.sym_int, torch.sym_float, torch.sym_max, torch.sym_min, torch.sym_not)

_EXACT_POWERS = (1, 2)
"""Exponents that everybody multiplies out."""

_NAMES = """_assert_tensor_metadata abs alias arange bitwise_and bitwise_not bitwise_or cat chunk clamp clone concat
    contiguous copy copy_ detach detach_ div embedding empty empty_like eq expand expand_as flatten full full_like
    gather ge gt index index_select le lift_fresh_copy logical_and logical_not logical_or lt masked_fill maximum minimum
    mul narrow ne neg new_empty new_ones new_zeros ones ones_like permute reciprocal relu repeat repeat_interleave
    reshape rsqrt scalar_tensor select slice split split_with_sizes squeeze stack sym_size t to transpose type_as unbind
    unflatten unsqueeze view view_as where zeros zeros_like _to_copy"""
_EXACT = frozenset(_NAMES.split())
"""Operators of torch that move numbers, compare them, or round the exact result: they compute the same everywhere. Its
square root is not among them: MKL's is off by one place here and there."""


def use_native(graph: fx.Graph) -> None:
    """Puts our own operators in the place of torch's functions and sums in an exported `graph`."""
    for node in list(graph.nodes):
        replace = _REPLACEMENTS.get(node.target)
        if replace is not None:
            with graph.inserting_before(node):
                new = replace(graph, node)
            if new is not None:
                new.meta = node.meta
                node.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def variant_operators(graph: fx.Graph) -> list[str]:
    """Names of the operators in `graph` of which it is not known that a token's result depends on that token alone."""
    calls = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    return sorted({str(node.target) for node in calls if not _is_invariant(node)})


def _is_invariant(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):  # arithmetic of sizes
        return getattr(target, "__module__", "") in ("_operator", "math") or target in _OF_SIZES
    if target.namespace == "outrider_native":
        return True
    name = target._schema.name.removeprefix("aten::")
    match name:
        case "add" | "sub" | "rsub":
            return len(node.args) == 2 and not node.kwargs  # no factor
        case "pow":
            return node.args[1] in _EXACT_POWERS
        case "matmul" | "bmm":  # angles of rotary positions: a frequency times a position, and nothing is added up
            return _value(node.args[0]).shape[-1] == 1
        case "dropout":
            return node.args[2] is False
        case "div":
            return "rounding_mode" not in node.kwargs
        case _:
            return name in _EXACT


def _function(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if node.target == _aten.gelu.default and node.kwargs.get("approximate") != "tanh":
        return None
    return _native(graph, "elementwise", node.args[0], FUNCTIONS.index(node.target))


def _power(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Cubes are multiplied out, so that both products are rounded: in 16 bits the compiler would round once."""
    x, exponent = node.args
    if exponent != 3:
        return None
    return graph.call_function(_aten.mul.Tensor, (graph.call_function(_aten.mul.Tensor, (x, x)), x))


def _mean(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    x, dims, *keeps = node.args
    if list(dims) != [-1] or keeps != [True] or node.kwargs:  # type: ignore[arg-type]
        return None
    if isinstance(x, fx.Node) and x.target == _aten.pow.Tensor_Scalar and x.args[1] == 2:
        return _native(graph, "row_mean", x.args[0], 2)
    return _native(graph, "row_mean", x, 1)


def _layer_norm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    x, shape, weight, bias, epsilon, *_ = (*node.args, *(None, None, 1e-5)[len(node.args) - 2 :])
    if len(shape) != 1:  # type: ignore[arg-type]
        return None
    dtype = _value(x).dtype
    x = graph.call_function(_aten.to.dtype, (x, torch.float32))
    centred = graph.call_function(_aten.sub.Tensor, (x, _native(graph, "row_mean", x, 1)))
    variance = _native(graph, "row_mean", centred, 2)
    scale = graph.call_function(_aten.rsqrt.default, (graph.call_function(_aten.add.Tensor, (variance, epsilon)),))
    result = graph.call_function(_aten.mul.Tensor, (centred, scale))
    if weight is not None:
        result = graph.call_function(_aten.mul.Tensor, (result, weight))
    if bias is not None:
        result = graph.call_function(_aten.add.Tensor, (result, bias))
    return graph.call_function(_aten.to.dtype, (result, dtype))


_REPLACEMENTS: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    **dict.fromkeys(FUNCTIONS, _function),
    _aten.pow.Tensor_Scalar: _power,
    _aten.mean.dim: _mean,
    _aten.layer_norm.default: _layer_norm,
}


def _native(graph: fx.Graph, name: str, *arguments: Any) -> fx.Node:
    return graph.call_function(getattr(torch.ops.outrider_native, name).default, arguments)


def _value(node: Any) -> torch.Tensor:
    """What is known of a node's result: shape and type."""
    return node.meta["val"]
