"""What a mask lets a token see is found out by asking its function, at any distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    blockwise_overlay,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    padding_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from outrider.engine.load.mask import ForeignMaskError, MaskFunction, sliding_window

ZERO = torch.zeros(1, dtype=torch.int64)
SIZES = (4, 100, 4096, 40_000, 1 << 24)


def prefix_is_seen_by_all(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key < 3


def every_eighth(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query - key) % 8 == 0


def window_that_grows(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query - key <= 64 + query // 1000


def window_from(start: int) -> MaskFunction:
    """Full attention below `start`, a window from there on."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query < start) | (query - key < 64)

    return sees


@pytest.mark.parametrize("num_positions", SIZES)
def test_a_window_is_known_exactly_and_full_attention_has_none(num_positions: int) -> None:
    assert sliding_window(causal_mask_function, num_positions) is None
    for window in (1, 2, 3, 99, 100, 101, 4095, 4096, 12_345):
        expected = window if window < num_positions else None
        assert sliding_window(sliding_window_causal_mask_function(window), num_positions) == expected


@pytest.mark.parametrize("num_positions", SIZES[1:])
@pytest.mark.parametrize(
    "sees",
    [
        bidirectional_mask_function,
        sliding_window_bidirectional_mask_function(8),
        chunked_causal_mask_function(16, ZERO),
        chunked_causal_mask_function(63, ZERO),
        or_masks(prefix_is_seen_by_all, causal_mask_function),
        or_masks(prefix_is_seen_by_all, sliding_window_causal_mask_function(8)),
        and_masks(every_eighth, causal_mask_function),
        and_masks(window_from(65), causal_mask_function),
    ],
)
def test_every_other_mask_is_refused(sees: MaskFunction, num_positions: int) -> None:
    with pytest.raises(ForeignMaskError):
        sliding_window(sees, num_positions)


@pytest.mark.parametrize("chunk", [100, 8192])
def test_chunks_are_full_attention_to_texts_that_fit_into_one(chunk: int) -> None:
    mask = chunked_causal_mask_function(chunk, ZERO)
    assert sliding_window(mask, chunk) is None
    with pytest.raises(ForeignMaskError, match="at position"):
        sliding_window(mask, 131_072)


@pytest.mark.parametrize("start", [5000, 100_000])
def test_what_begins_far_away_is_found(start: int) -> None:
    assert sliding_window(and_masks(window_from(start), causal_mask_function), start) is None
    with pytest.raises(ForeignMaskError):
        sliding_window(and_masks(window_from(start), causal_mask_function), 131_072)
    with pytest.raises(ForeignMaskError):
        sliding_window(and_masks(window_that_grows, causal_mask_function), 131_072)


def test_a_mask_that_asks_for_more_than_positions_is_refused() -> None:
    blocks = or_masks(causal_mask_function, blockwise_overlay(torch.full((1, 4), -1)))
    padded = and_masks(causal_mask_function, padding_mask_function(torch.ones(1, 4, dtype=torch.bool)))
    for mask in (blocks, padded):
        with pytest.raises(ForeignMaskError, match="depends on more than"):
            sliding_window(mask, 100)
