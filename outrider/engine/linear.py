"""Matrix products of few rows on a CPU: a model's linear layers on the native operator, with weights in its order."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from outrider.engine import native

_LANES = 16
_WORD_BYTES = 4
"""What the operator reads of a weight for one output at once."""


class PackedLinear(nn.Module):
    """An `nn.Linear` whose weight is in panels. A row's result does not depend on the other rows, to the last bit."""

    panels: Tensor
    """[num_panels, K / numbers per word, 16 words]: see the operator's source."""
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("panels", panels(layer.weight.detach()))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
        self.out_features = layer.out_features

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


def pack(model: nn.Module) -> None:
    """Puts a PackedLinear in the place of each linear layer of `model` that the operator can compute."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.Linear and _can_pack(layer.weight):
                setattr(module, name, PackedLinear(layer))


def _can_pack(weight: Tensor) -> bool:
    return native.has_linear(weight.dtype) and weight.shape[1] * weight.itemsize % _WORD_BYTES == 0
