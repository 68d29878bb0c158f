"""Cells move natively as torch moves them: in all layers, whatever their shapes, and as if all at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from outrider.engine import native
from outrider.engine.kv_cache.slots import Move
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.load.probe import LayerFacts

LAYERS = [LayerFacts(4, 2, 8, 8, None), LayerFacts(4, 1, 24, 16, None), LayerFacts(4, 2, 8, 8, 32)]
MOVES = [
    [Move(5, 3)],
    [Move(2, 1), Move(3, 2), Move(4, 3)],  # each to where the next one comes from
    [Move(7, 9), Move(9, 7)],
    [Move(31, 0), Move(16, 31), Move(8, 15)],
]


def filled() -> KVCache:
    cache = KVCache(LAYERS, 2, 16, torch.bfloat16, torch.device("cpu"))
    noise = torch.Generator().manual_seed(1)
    for storage in cache.storages:
        storage.copy_(torch.randn(storage.shape, generator=noise))
    return cache


def held(cache: KVCache) -> list[Tensor]:
    return [each.clone() for each in (*cache.keys, *cache.values)]


@pytest.mark.usefixtures("native_operators")
@pytest.mark.parametrize("moves", MOVES)
def test_moves_are_those_of_torch(moves: list[Move], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = filled(), filled()
    before = held(cache)
    cache.move(moves)
    with monkeypatch.context() as without:
        without.setattr(native, "available", lambda device: False)
        other.move(moves)
    for ours, theirs, old in zip(held(cache), held(other), before, strict=True):
        assert torch.equal(ours, theirs)
        for source, destination in moves:
            assert torch.equal(ours[destination], old[source])
