"""Products that read the same input as one product: their weights one after another in memory, and there once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.engine.quantized.linear import QuantizedLinear
from outrider.engine.quantized.weight import QuantizedWeight


def joined(*layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """The outputs of linear `layers` for one input, one after another, by one product.

    Their weights become parts of one tensor. Layers of other classes, and those whose weights do not make up one, are
    called one by one.
    """
    if len({_kind(layer) for layer in layers}) == 1:
        if type(layers[0]) is nn.Linear:
            return _plain(layers)
        if type(layers[0]) is QuantizedLinear and (weight := _in_few_bits(layers)) is not None:
            return QuantizedLinear(weight, _biases(layers))
    return lambda x: torch.cat([layer(x) for layer in layers], -1)


def _kind(layer: Any) -> tuple[object, ...]:
    return type(layer), layer.in_features, layer.bias is None


def _plain(layers: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    weight, bias = _in_one([layer.weight for layer in layers]), _biases(layers)
    return lambda x: functional.linear(x, weight, bias)


def _in_few_bits(layers: Sequence[Any]) -> QuantizedWeight | None:
    """The weights of quantized layers as one; None if their scales or the order of their inputs do not allow it."""
    weights: list[QuantizedWeight] = [layer.weight_in_few_bits for layer in layers]
    first, *others = weights
    if any(_shape(each) != _shape(first) or not _same(each.order, first.order) for each in others):
        return None
    if any(each.num_outputs % each.rows for each in weights[:-1]):
        return None
    zeros = None if first.zeros is None else _in_one([each.zeros for each in weights if each.zeros is not None])
    codes, scales = (_in_one(parts) for parts in ([each.codes for each in weights], [each.scales for each in weights]))
    return QuantizedWeight(codes, scales, first.rows, first.columns, zeros, first.order)


def _shape(weight: QuantizedWeight) -> tuple[object, ...]:
    return weight.rows, weight.columns, weight.codes.dtype, weight.scales.dtype, weight.zeros is None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _biases(layers: Sequence[Any]) -> Tensor | None:
    return None if layers[0].bias is None else _in_one([layer.bias for layer in layers])


def _in_one(parts: Sequence[Tensor]) -> Tensor:
    """`parts` one after another in one tensor, of which they are views from now on. Asked again, it is the same one."""
    first, size = parts[0].data, sum(len(part) for part in parts)
    in_a_row = all(
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.data_ptr() + one.nbytes == other.data_ptr()
        for one, other in pairwise(parts)
    )
    if in_a_row:
        return first.as_strided((size, *first.shape[1:]), first.stride())
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole
