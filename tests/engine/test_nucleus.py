"""Choosing without a ranking equals the definition, which ranks: the same tokens, also where sums equal top_p."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine import native
from outrider.engine.sample import candidates as definition
from outrider.engine.sample import ranking
from outrider.engine.sample import sampler as sampling
from outrider.engine.sample.candidates import candidates
from outrider.engine.sample.sampler import Row, Sampler
from tests.engine.samplers import OUTPUT, PROMPT, VOCAB_SIZE

TOP_PS = (1e-6, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0)
KINDS = [
    *(SamplingParams(temperature=0.8, top_p=top_p, seed=11) for top_p in TOP_PS),
    *(SamplingParams(temperature=1.5, top_p=top_p, min_p=0.05, seed=12) for top_p in TOP_PS),
    *(SamplingParams(temperature=1.0, top_p=top_p, top_k=9, seed=13) for top_p in TOP_PS),
    SamplingParams(temperature=1e-3, top_p=0.9, seed=14),
    SamplingParams(temperature=50.0, top_p=0.5, seed=15),
    SamplingParams(temperature=0.7, top_p=0.5, top_k=VOCAB_SIZE + 1, seed=16),
    SamplingParams(temperature=0.9, top_p=0.6, repetition_penalty=1.3, presence_penalty=0.5, seed=17),
    SamplingParams(temperature=0.9, top_p=0.6, logit_bias=((5, 9.0), (6, 9.0)), seed=18),
    SamplingParams(),
]
WIDTH = 6


def spread(num_rows: int) -> Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 3


def tied(num_rows: int) -> Tensor:
    """Eight different logits, and zeros of both signs among them."""
    return (spread(num_rows) / 2).round().clamp(-4, 3)


def few_equals(num_rows: int) -> Tensor:
    """Ten equal tokens and nothing else: what ranks before a token is a multiple of 0.1, as top_p is."""
    logits = torch.full((num_rows, VOCAB_SIZE), -math.inf)
    logits[:, 7 : VOCAB_SIZE : VOCAB_SIZE // 9] = 1.25
    return logits


def halves(num_rows: int) -> Tensor:
    """Two equal tokens far above the others."""
    logits = spread(num_rows).clamp(-9, 9) - 60.0
    logits[:, [12, 400]] = 3.0
    return logits


@pytest.mark.usefixtures("each_chooser")
@pytest.mark.parametrize(
    ("make", "dtype"),
    [(spread, torch.float32), (tied, torch.bfloat16), (few_equals, torch.float32), (halves, torch.float32)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_row_chooses_and_proposes_by_the_definition(make: Callable[[int], Tensor], dtype: torch.dtype) -> None:
    sampler = Sampler(VOCAB_SIZE, len(KINDS), torch.device("cpu"))
    for slot, params in enumerate(KINDS):
        sampler.open(slot, params, PROMPT, OUTPUT)
    rows = [Row(slot, position, (4, 9)) for position in range(40, 43) for slot in range(len(KINDS))]
    logits = make(len(rows)).to(dtype)
    choices, (proposals, margins) = sampler.choose(logits, rows), sampler.propose(logits, rows, WIDTH)
    processed = sampler._processed(logits, rows)
    for slot, params in enumerate(KINDS):
        indices = range(slot, len(rows), len(KINDS))
        expected = candidates(*sampler._described(processed, rows, indices), WIDTH).best(WIDTH)
        for index, best in zip(indices, expected, strict=True):
            assert choices[index] == best.token_ids[0], params
            assert proposals[index] == best.token_ids, params
            assert margins[index] == pytest.approx(best.margins, abs=1e-9)


@pytest.mark.usefixtures("each_chooser")
def test_only_a_row_in_doubt_is_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a sum of probabilities equals top_p does the definition, which sorts, have to say."""
    asked: list[int] = []
    monkeypatch.setattr(sampling, "candidates", lambda logits, *_: asked.append(len(logits)) or candidates(logits, *_))
    sampler = Sampler(VOCAB_SIZE, 1, torch.device("cpu"))
    sampler.open(0, SamplingParams(temperature=1.0, top_p=0.7, seed=3), [1], [])
    rows = [Row(0, position) for position in range(40)]
    sampler.propose(spread(40), rows, WIDTH)
    assert not asked
    sampler.choose(few_equals(40), rows)
    assert 0 < sum(asked) < 40


LARGE_VOCABULARY = 152_000
TOP_K = 40
UNRANKED = (
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=0.8, top_p=0.95, seed=2),
    SamplingParams(temperature=0.8, min_p=0.05, seed=3),
    SamplingParams(temperature=0.8, top_p=0.95, min_p=0.05, seed=4),
    SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, frequency_penalty=0.2, seed=5),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=LARGE_VOCABULARY, seed=6),
)
FEW_RANKED = (
    SamplingParams(temperature=0.8, top_k=TOP_K, top_p=0.95, min_p=0.05, presence_penalty=0.5, seed=7),
    SamplingParams(repetition_penalty=1.1),
)


def test_a_step_of_all_kinds_ranks_no_more_than_top_k_of_the_rows_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever shares the step: without native code a vocabulary like Qwen's is never sorted."""
    monkeypatch.setattr(native, "available", lambda device: False)
    asked: list[tuple[int, int]] = []

    def ranked(logits: Tensor, num_ranked: int) -> tuple[Tensor, Tensor]:
        asked.append((len(logits), num_ranked))
        return ranking.ranked(logits, num_ranked)

    monkeypatch.setattr(definition, "ranked", ranked)
    kinds = (*UNRANKED, *FEW_RANKED)
    sampler = Sampler(LARGE_VOCABULARY, len(kinds), torch.device("cpu"))
    for slot, params in enumerate(kinds):
        sampler.open(slot, params, PROMPT, OUTPUT)
    logits = torch.randn(len(kinds), LARGE_VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    sampler.choose(logits, [Row(slot, 40) for slot in range(len(kinds))])
    assert asked == [(len(FEW_RANKED), TOP_K)]
