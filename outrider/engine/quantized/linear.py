"""Linear layers that keep their weight in few bits, and de-quantise it within the product."""

from __future__ import annotations

from functools import cache, partial
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from outrider.engine.gpu.trial import difference, trial, triton_problem
from outrider.engine.quantized import eight_bits
from outrider.engine.quantized.weight import QuantizedWeight

_TRIED_SHAPE = (3, 48, 160)
"""Rows, outputs and inputs of a trial: no whole tiles of any of them."""
_TRIED_BLOCK = (32, 32)
_TOLERANCE = 1e-2
"""Largest difference that rounding explains, relative to the largest number."""


class QuantizedLinear(nn.Module):
    """An `nn.Linear` over a quantized weight, which it never writes out whole where a kernel does the product."""

    _hf_quantized_needs_local_tp = True
    """Tells transformers that where a model is divided this has a rank's part already, and takes plain tensors."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    order: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, whole: tuple[int, int] | None = None) -> None:
        """`whole` are outputs and inputs of the whole layer, if `weight` is a rank's part of its own."""
        super().__init__()
        self.out_features, self.in_features = whole or (weight.num_outputs, weight.num_inputs)
        self._rows, self._columns = weight.rows, weight.columns
        for name in ("codes", "scales", "zeros", "order"):
            self.register_buffer(name, getattr(weight, name))
        self.register_buffer("bias", bias)

    @property
    def weight_in_few_bits(self) -> QuantizedWeight:
        """What it multiplies by."""
        return QuantizedWeight(self.codes, self.scales, self._rows, self._columns, self.zeros, self.order)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N], of the type of `x`."""
        weight = self.weight_in_few_bits
        rows = x.reshape(-1, weight.num_inputs)
        found = _opaque(rows, *weight) if torch.compiler.is_compiling() else _product(rows, weight)
        found = found if self.bias is None else found + self.bias
        return found.unflatten(0, x.shape[:-1])


def _product(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """[M, N]: `x` [M, K] times the transpose of a weight."""
    if weight.in_eight_bits:
        return eight_bits.product(x, weight)
    if problem(x.device):
        return functional.linear(x, weight.dequantized(x.dtype))
    from outrider.engine.gpu.quantized_launch import product  # it wants Triton

    return product(x, *weight)


@torch.library.custom_op("outrider::quantized_product", mutates_args=())
def _opaque(
    x: Tensor, codes: Tensor, scales: Tensor, rows: int, columns: int, zeros: Tensor | None, order: Tensor | None
) -> Tensor:
    """`_product` as graph compilers see it."""
    return _product(x, QuantizedWeight(codes, scales, rows, columns, zeros, order))


@_opaque.register_fake
def _(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


@cache
def problem(device: torch.device) -> str:
    """Why the kernel does not multiply on `device`, where weights are then de-quantised for each product; empty if it
    does. It is tried."""
    return triton_problem(device) or trial(partial(_off, device), _TOLERANCE)


def _off(device: torch.device) -> float:
    """How far its products are from those with the numbers that its weights stand for."""
    from outrider.engine.gpu.quantized_launch import product  # it wants Triton

    num_rows, num_outputs, num_inputs = _TRIED_SHAPE
    rows, columns = _TRIED_BLOCK
    random = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, num_inputs, generator=random).to(device, torch.float16)
    scales = torch.rand(-(-num_outputs // rows), num_inputs // columns, generator=random) / num_inputs**0.5
    fp8 = torch.randn(num_outputs, num_inputs, generator=random).to(torch.float8_e4m3fn)
    int4 = torch.randint(256, (num_outputs, num_inputs // 2), generator=random, dtype=torch.uint8)
    zeros = torch.randint(16, (num_outputs, num_inputs // columns), generator=random, dtype=torch.uint8)
    order = torch.randperm(num_inputs, generator=random)
    tried = (
        QuantizedWeight(fp8.to(device), scales.to(device), rows, columns),
        QuantizedWeight(int4.to(device), scales.to(device), rows, columns, zeros.to(device), order.to(device)),
    )
    found = [product(x, *each) for each in tried]
    expected = [x.float() @ each.dequantized(torch.float32).T for each in tried]
    return difference(torch.cat(found), torch.cat(expected))


def num_parameters(model: nn.Module) -> int:
    """Of the whole model, a quantized weight's counted as what it stands for."""
    few_bits = sum(layer.out_features * (layer.in_features + (layer.bias is not None)) for layer in _layers(model))
    return few_bits + sum(each.numel() for each in model.parameters())


def weight_tensors(model: nn.Module) -> list[Tensor]:
    """All that the weights of `model` are kept in."""
    return [*model.parameters(), *(each for layer in _layers(model) for each in layer.buffers())]


def kept_as(model: nn.Module) -> Literal["full", "fp8", "int8", "int4"]:
    """In what the linear layers keep their weights."""
    for layer in _layers(model):
        if layer.weight_in_few_bits.in_eight_bits:
            return "int8"
        return "fp8" if layer.zeros is None else "int4"
    return "full"


def keep_in_eight_bits(model: nn.Module) -> None:
    """Rounds the weights of all linear layers of `model` to eight bits, the head's too, and has them kept so.

    What reads a weight elsewhere, such as an embedding that the head shares, goes on reading it as it was.
    """
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if is_linear(layer) and (weight := dense_weight(layer)).shape[1] <= eight_bits.INPUTS_MAX:
                setattr(module, name, QuantizedLinear(eight_bits.rounded(weight), _detached(layer.bias)))


def is_linear(layer: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether `layer` is a linear one in numbers of full width, as GPT-2 has it or as others do. A subclass may
    differ."""
    return type(layer) in (nn.Linear, Conv1D)


def dense_weight(layer: nn.Linear | Conv1D) -> Tensor:
    """[N, K]: outputs by inputs."""
    return layer.weight if isinstance(layer, nn.Linear) else layer.weight.T


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _layers(model: nn.Module) -> list[QuantizedLinear]:
    return [module for module in model.modules() if isinstance(module, QuantizedLinear)]
