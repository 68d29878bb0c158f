"""The native operator chooses what the sampler's own tensors choose, for vocabularies of any size."""

from __future__ import annotations

import math

import pytest
import torch

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine import native
from outrider.engine.sample.sampler import Row, Sampler

CPU = torch.device("cpu")
KINDS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=4),
    SamplingParams(temperature=1.1, top_k=7, seed=5),
    SamplingParams(temperature=0.9, top_p=0.6, seed=6),
    SamplingParams(temperature=1.0, top_k=30, top_p=0.9, min_p=0.01, seed=7),
]
VOCAB_SIZES = (2000, 5, 1025, 64, 1024, 17, 4096, 63)
"""Blocks that are full, and ones that are not; large ones before small ones, as one thread keeps its memory."""


@pytest.mark.usefixtures("native_operators")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_choose_and_propose_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for vocab_size in VOCAB_SIZES:
        sampler = Sampler(vocab_size, len(KINDS), CPU)
        for slot, params in enumerate(KINDS):
            sampler.open(slot, params, [1], [])
        rows = [Row(slot, position) for position in range(12) for slot in range(len(KINDS))]
        noise = torch.Generator().manual_seed(vocab_size)
        logits = (torch.randn(len(rows), vocab_size, generator=noise) * 3).to(dtype)
        logits[5, 1:] = -math.inf
        found = sampler.choose(logits, rows), *sampler.propose(logits, rows, 8)
        with monkeypatch.context() as without:
            without.setattr(native, "available", lambda device: False)
            expected = sampler.choose(logits, rows), *sampler.propose(logits, rows, 8)
        assert found[:2] == expected[:2]
        for margins, expected_margins in zip(found[2], expected[2], strict=True):
            assert margins == pytest.approx(expected_margins, abs=1e-9)
