"""Samplers of tests, the sessions in their slots, and the logits that they choose from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.noise import as_int64, gumbel
from outrider.engine.sample.sampler import Row, Sampler

VOCAB_SIZE = 503
PROMPT = [1, 2, 3, 3, 500]
OUTPUT = [3, 4, 4, 4, 502]

GREEDY = SamplingParams()
WARM = SamplingParams(temperature=0.8, seed=1)
PENALIZED = SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.25)
EVERYTHING = SamplingParams(
    temperature=1.3,
    top_k=40,
    top_p=0.9,
    min_p=0.02,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=-0.2,
    logit_bias=((7, 4.0), (3, -2.0)),
    seed=2**64 - 5,
)
ALL_KINDS = [
    GREEDY,
    WARM,
    PENALIZED,
    EVERYTHING,
    SamplingParams(logit_bias=((11, 100.0),)),
    SamplingParams(temperature=0.7, top_k=5, seed=3),
    SamplingParams(temperature=1.0, top_p=0.7, seed=2**63),
    SamplingParams(temperature=1.0, min_p=0.1, seed=5),
    SamplingParams(temperature=0.5, presence_penalty=1.5, seed=6),
    # Greedy: what shapes a distribution has no effect.
    SamplingParams(top_k=3, top_p=0.5, min_p=0.5, seed=9),
]


def opened(*all_params: SamplingParams) -> Sampler:
    """A sampler whose slots 0, 1, ... hold sessions of the given parameters, all on one line."""
    sampler = Sampler(VOCAB_SIZE, len(all_params), torch.device("cpu"))
    for slot, params in enumerate(all_params):
        sampler.open(slot, params, PROMPT, OUTPUT)
    return sampler


def random_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def processed_log_probs(sampler: Sampler, logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """The distribution [R, V] that each row samples: everything that survives is proposed.

    By how much a proposal is behind tells its score up to a constant of the row, once the noise is taken out.
    """
    scores = torch.full(logits.shape, -math.inf, dtype=torch.float64)
    for index, (token_ids, margins) in enumerate(zip(*sampler.propose(logits, rows, logits.shape[1]), strict=True)):
        assert len(set(token_ids)) == len(token_ids)
        scores[index, token_ids] = -torch.tensor([0.0, *margins[1:]], dtype=torch.float64)
    return (scores - noise_of(sampler, rows)).log_softmax(-1).float()


def noise_of(sampler: Sampler, rows: Sequence[Row]) -> torch.Tensor:
    """What chance adds to the score of each token [R, V], in float64: nothing in greedy rows."""
    params = [sampler._params[row.slot] for row in rows]
    seeds, positions = torch.tensor([as_int64(each.seed) for each in params]), torch.tensor([r.position for r in rows])
    sampled = torch.tensor([[not each.greedy] for each in params])
    return gumbel(seeds, positions, VOCAB_SIZE) * sampled
