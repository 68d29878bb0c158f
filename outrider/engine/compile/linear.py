"""Small-M GEMM (products of few rows) on a CPU: linear layers on the native operators, weights in their order."""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from outrider.engine import native
from outrider.engine.quantized.linear import QuantizedLinear, dense_weight, is_linear
from outrider.engine.quantized.weight import QuantizedWeight

_LANES = 16
_WORD_BYTES = 4
"""What the operator reads of a weight for one output at once."""


class PackedLinear(nn.Module):
    """An `nn.Linear`, GPT-2's `Conv1D`, or a `QuantizedLinear` in eight bits, whose weight is in panels.

    A row's result does not depend on the other rows, to the last bit.
    """

    panels: Tensor
    """[num_panels, K / numbers per word, 16 words], in eight bits uint8 with a line more, in twelve bits uint8
    [num_panels, bytes of a panel]: see the operator's source."""
    bias: Tensor | None

    def __init__(self, layer: nn.Linear | Conv1D | QuantizedLinear) -> None:
        super().__init__()
        if isinstance(layer, QuantizedLinear):
            weight = layer.weight_in_few_bits
            self.out_features, packed = weight.num_outputs, byte_panels(weight)
        else:
            weight = dense_weight(layer).detach()
            self.out_features, packed = weight.shape[0], panels(weight)
            if weight.dtype == torch.bfloat16 and native.prefers_compact():
                packed = torch.ops.outrider_native.compact(packed)
        self.register_buffer("panels", packed)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., out_features]."""
        return torch.ops.outrider_native.linear(x, self.panels, self.bias, self.out_features)


def panels(weight: Tensor) -> Tensor:
    """`weight` [N, K] as the operator reads it: sixteen outputs side by side, word by word of K.

    N is padded with zeros.
    """
    num_outputs, size = weight.shape
    numbers = _WORD_BYTES // weight.itemsize
    num_panels = -(-num_outputs // _LANES)
    padded = functional.pad(weight, (0, 0, 0, num_panels * _LANES - num_outputs))
    words = padded.view(num_panels, _LANES, size // numbers, numbers).transpose(1, 2)
    return words.reshape(num_panels, size // numbers, _LANES * numbers).contiguous()


def byte_panels(weight: QuantizedWeight) -> Tensor:
    """`weight`, in eight bits, as the operator reads it: each number by 128 larger, and the scales of sixteen outputs
    behind their panel."""
    numbers = (weight.codes.short() + 128).to(torch.uint8)
    words = panels(functional.pad(numbers, (0, -weight.num_inputs % _WORD_BYTES)))
    scales = functional.pad(weight.scales[:, 0].float(), (0, len(words) * _LANES - weight.num_outputs))
    return torch.cat([words, scales.view(len(words), 1, _LANES).view(torch.uint8)], 1)


def pack(model: nn.Module) -> None:
    """Puts a PackedLinear in the place of each linear layer of `model` that the operator can compute."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if _can_pack(layer):
                setattr(module, name, PackedLinear(layer))


def fuse_gates(graph: fx.Graph) -> None:
    """Makes one operator of each down(silu(gate(x)) * up(x)) of packed layers in an exported `graph`.

    What lies between the products is then never written to memory, nor rounded to the model's numbers.
    """
    for down in [node for node in graph.nodes if node.target == torch.ops.outrider_native.linear.default]:
        inner, down_panels, down_bias, num_outputs = down.args
        if (found := _gate_and_up(inner)) is None:
            continue
        gate, up = found
        if len({_kind(each) for each in (gate, up, down)}) > 1:
            continue
        x, gate_panels, gate_bias, _ = gate.args
        _, up_panels, up_bias, num_inner = up.args
        with graph.inserting_before(down):
            fused = graph.call_function(
                torch.ops.outrider_native.gated_linear.default,
                (x, gate_panels, gate_bias, up_panels, up_bias, num_inner, down_panels, down_bias, num_outputs),
            )
        fused.meta = down.meta
        down.replace_all_uses_with(fused)
    graph.eliminate_dead_code()


def fuse_siblings(graph: fx.Graph) -> None:
    """Makes one product of the packed layers in an exported `graph` that read the same: query, key and value, mostly.

    Their panels stand one after another then, so the input is made ready for the kernels once. No bit changes.
    """
    siblings: defaultdict[tuple[fx.Node, bool, _Kind], list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target == torch.ops.outrider_native.linear.default:
            x, _, bias, num_outputs = node.args
            if num_outputs % _LANES == 0:
                siblings[x, bias is not None, _kind(node)].append(node)
    for layers in siblings.values():
        if len(layers) > 1:
            _fuse(graph, layers)
    graph.eliminate_dead_code()


def _fuse(graph: fx.Graph, layers: list[fx.Node]) -> None:
    """One product in the place of packed `layers` with the same input, each with a bias or none, and parts of it."""
    x, panels_, bias, sizes = zip(*(layer.args for layer in layers), strict=True)
    cat, linear = torch.ops.aten.cat.default, torch.ops.outrider_native.linear.default
    with graph.inserting_before(layers[0]):
        all_panels = graph.call_function(cat, (panels_,))
        all_bias = None if bias[0] is None else graph.call_function(cat, (bias,))
        product = graph.call_function(linear, (x[0], all_panels, all_bias, sum(sizes)))
        parts = graph.call_function(torch.ops.aten.split_with_sizes.default, (product, sizes, -1))
        for index, layer in enumerate(layers):
            part = graph.call_function(operator.getitem, (parts, index))
            part.meta = layer.meta
            layer.replace_all_uses_with(part)


_Kind: TypeAlias = tuple[torch.dtype, int]


def _kind(layer: fx.Node) -> _Kind:
    """Panels of layers of one kind may stand one after another, or be an operator's together."""
    panels_ = layer.args[1]
    assert isinstance(panels_, fx.Node)
    value: Tensor = panels_.meta["val"]
    return value.dtype, value.dim()


def _gate_and_up(inner: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The linear layers of silu(gate(x)) * up(x), if `inner` is that and nobody else wants a part of it."""
    if inner.target != torch.ops.aten.mul.Tensor or len(inner.all_input_nodes) != 2:
        return None
    for silu, up in itertools.permutations(inner.all_input_nodes):
        if silu.target != torch.ops.aten.silu.default:
            continue
        (gate,) = silu.all_input_nodes
        are_linear = all(layer.target == torch.ops.outrider_native.linear.default for layer in (gate, up))
        are_private = all(len(node.users) == 1 for node in (inner, silu, gate, up))
        if are_linear and are_private and gate.args[0] is up.args[0]:
            return gate, up
    return None


def _can_pack(layer: nn.Module) -> TypeGuard[nn.Linear | Conv1D | QuantizedLinear]:
    if isinstance(layer, QuantizedLinear):
        return layer.weight_in_few_bits.in_eight_bits
    if not is_linear(layer):
        return False
    weight = dense_weight(layer)
    return native.has_linear(weight.dtype) and weight.shape[1] * weight.itemsize % _WORD_BYTES == 0
