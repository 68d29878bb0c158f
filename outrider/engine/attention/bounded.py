"""The ragged attention for models whose sessions share products: what a cell of the KV cache takes is bounded.

Static batches need it (`outrider.engine.attention.static`), and so does every other batch over the same cells. It plugs
into transformers' `AttentionInterface` under the name BOUNDED_ATTENTION.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.engine.attention.interface import LayerCall
from outrider.engine.attention.operator import attend, register

BOUNDED_ATTENTION = "outrider-bounded"
"""Name under which the attention is registered with transformers."""

CELL_MAGNITUDE_MAX = 1e15
"""Largest absolute value that a cell takes. Sessions share a step's products: a weight of 0 times a neighbour's value
must be 0, and a neighbour's score finite before -inf is added to it. 1e15 times the largest queries that models have, a
few thousand, over a few hundred dimensions is far below the largest float32, 3e38."""


def _bounded(content: Tensor) -> Tensor:
    """What a cell may take of `content`: NaN as 0, and nothing beyond CELL_MAGNITUDE_MAX."""
    largest = min(CELL_MAGNITUDE_MAX, torch.finfo(content.dtype).max)
    return content.nan_to_num(0.0).clamp(-largest, largest)


def _attend(query: Tensor, key: Tensor, value: Tensor, model: int, layer: LayerCall) -> Tensor:
    return attend(query, _bounded(key), _bounded(value), model, layer)


register(BOUNDED_ATTENTION, _attend)
