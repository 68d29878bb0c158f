"""What a cell takes of a number where its type is narrower than the model's: eight bits, whose effect is measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
"""Four bits of exponent and three of fraction: the narrowest type that keys and values are kept in without scales."""

CELL_TYPES: Mapping[str, torch.dtype | None] = {"auto": None, "fp8": FP8}
"""By the names that flags and ModelInfo use; None is the model's own."""

_LARGEST = torch.finfo(FP8).max


def stored(content: Tensor, dtype: torch.dtype) -> Tensor:
    """`content` as cells of that type take it; beyond its largest number they take that."""
    return content.clamp(-_LARGEST, _LARGEST).to(FP8) if dtype == FP8 else content


def movable(cells: Tensor) -> Tensor:
    """The same memory in a type that torch indexes; it does nothing with numbers of eight bits but converting them."""
    return cells.view(torch.uint8) if cells.dtype == FP8 else cells
