"""A logits processor is one class that is handed to the sampler: here stands one, as a grammar's mask would be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.processor import Row
from outrider.engine.sample.sampler import Sampler

VOCAB_SIZE = 50


class Alternating:
    """Even and odd tokens in turn, after whatever the line or the path ends with; for greedy sessions alone."""

    def __init__(self) -> None:
        self.last: dict[int, int] = {}

    def open(
        self, slot: int, params: SamplingParams, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> bool:
        if params.greedy:
            self.last[slot] = [*prompt_token_ids, *output_token_ids][-1]
        return params.greedy

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        self.last[slot] = token_ids[-1]

    def close(self, slot: int) -> None:
        del self.last[slot]

    def process(self, logits: Tensor, indices: Sequence[int], rows: Sequence[Row]) -> None:
        for index, row in zip(indices, rows, strict=True):
            last = row.path[-1] if row.path else self.last[row.slot]
            logits[index, last % 2 :: 2] = -math.inf


@pytest.mark.usefixtures("each_chooser")
def test_a_processor_that_was_added_masks_and_others_are_as_before() -> None:
    greedy, sampled = SamplingParams(logit_bias=((4, 1.0),)), SamplingParams(temperature=0.8, seed=3)
    processor, device = Alternating(), torch.device("cpu")
    sampler, usual = Sampler(VOCAB_SIZE, 2, device, [processor]), Sampler(VOCAB_SIZE, 2, device)
    for each in (sampler, usual):
        each.open(0, greedy, [1, 2], [])
        each.open(1, sampled, [1, 2], [])
    rows = [Row(0, 2), Row(0, 3, (7,)), Row(0, 4, (7, 8)), Row(1, 2)]
    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    chosen = sampler.choose(logits, rows)
    assert [token_id % 2 for token_id in chosen[:3]] == [1, 0, 1]
    assert chosen[3] == usual.choose(logits, rows)[3]
    proposed, _ = sampler.propose(logits, rows, 4)
    assert [tokens[0] for tokens in proposed] == chosen
    assert {token_id % 2 for token_id in proposed[0]} == {1}
    sampler.commit(0, [3])
    assert sampler.choose(logits, rows)[0] % 2 == 0
    sampler.close(0)
    assert processor.last == {}
