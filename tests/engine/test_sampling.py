"""The sampler draws from the processed distribution, and a row's token depends on nothing but the row."""

import math
from collections import Counter
from statistics import NormalDist

import pytest
import torch

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row, Sampler
from tests.engine.samplers import ALL_KINDS, EVERYTHING, OUTPUT, PROMPT, VOCAB_SIZE, WARM, opened, random_logits

pytestmark = pytest.mark.usefixtures("each_chooser")


def chi_square_critical(num_degrees: int, error_probability: float) -> float:
    """What chi-square exceeds with the given probability (Wilson and Hilferty 1931; good to 1 % here)."""
    spread = 2 / (9 * num_degrees)
    return num_degrees * (1 - spread + NormalDist().inv_cdf(1 - error_probability) * spread**0.5) ** 3


SMALL_LOGITS = [2.0, 1.5, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -0.2]


def reference_probabilities(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """The filters by their definitions, one token after the other."""
    weights = {token: math.exp(logit / params.temperature) for token, logit in enumerate(logits)}
    ranking = sorted(weights, key=lambda token: (-weights[token], token))
    if params.top_k:
        ranking = ranking[: params.top_k]
    total = sum(weights[token] for token in ranking)
    reached = 0.0
    nucleus: list[int] = []
    for token in ranking:
        if reached < params.top_p:
            nucleus.append(token)
        reached += weights[token] / total
    kept = [token for token in nucleus if weights[token] >= params.min_p * weights[ranking[0]]]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


@pytest.mark.parametrize(
    ("shape", "num_kept"),
    [
        (dict(temperature=1.0), 12),
        (dict(temperature=0.5), 12),
        (dict(temperature=1.7), 12),
        (dict(temperature=1.0, top_k=4), 4),
        (dict(temperature=1.0, top_k=5), 5),  # of the two equal logits at the boundary the lower id stays
        (dict(temperature=1.0, top_p=0.8), 5),
        (dict(temperature=0.7, min_p=0.15), 3),
        (dict(temperature=1.2, top_k=8, top_p=0.9, min_p=0.2), 4),
    ],
    ids=str,
)
def test_choices_over_positions_follow_the_distribution(shape, num_kept):
    """Chi-square; the seed is fixed, and a right sampler fails one of the eight for 8e-4 of all seeds."""
    num_positions = 20_000
    params = SamplingParams(seed=20240607, **shape)
    sampler = Sampler(len(SMALL_LOGITS), 1, torch.device("cpu"))
    sampler.open(0, params, [0], [])
    logits = torch.tensor(SMALL_LOGITS).expand(num_positions, -1)
    counts = Counter(sampler.choose(logits, [Row(0, position) for position in range(num_positions)]))
    expected = reference_probabilities(SMALL_LOGITS, params)
    assert len(expected) == num_kept
    assert set(counts) <= set(expected)
    chi_square = sum(
        (counts[token] - probability * num_positions) ** 2 / (probability * num_positions)
        for token, probability in expected.items()
    )
    assert chi_square < chi_square_critical(num_kept - 1, 1e-4)


GOLDEN_CHOICES = [7, 297, 409, 7, 495, 7, 330, 396, 376, 7, 297, 7]
GOLDEN_WARM_CHOICES = [218, 113, 54, 165, 60, 416, 317, 205, 475, 231, 101, 298]


def test_golden_choices():
    """The rule, recorded once: a change here changes every seeded text ever generated."""
    rows = [Row(0, position, (5, position)) for position in range(100, 112)]
    logits = (torch.arange(VOCAB_SIZE) * 7919 % 1009 / 128).expand(len(rows), -1)
    assert opened(EVERYTHING).choose(logits, rows) == GOLDEN_CHOICES
    assert opened(WARM).choose(logits, rows) == GOLDEN_WARM_CHOICES


def test_seed_and_position_are_all_that_chance_depends_on():
    logits = (random_logits(1) / 3).expand(200, -1)
    sampler = opened(WARM, SamplingParams(temperature=0.8, seed=1 + 2**63), WARM)
    positions = range(1000, 1200)
    here, other_seed, there = (sampler.choose(logits, [Row(slot, at) for at in positions]) for slot in range(3))
    assert here == there
    assert here != other_seed
    assert len(set(here)) > 50


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0])
def test_two_close_distributions_agree_as_often_as_the_coupling_promises(temperature):
    """Daliri, Musco, Suresh (arXiv 2408.07978): Gumbel sampling with shared noise agrees with probability at least
    (1 - TV) / (1 + TV). The margin is four standard deviations of the estimate, a false alarm for 3e-5 of all seeds."""
    num_positions = 10_000
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(200, generator=generator) * 2
    draft = target + torch.randn(200, generator=generator) * 0.5
    sampler = Sampler(200, 1, torch.device("cpu"))
    sampler.open(0, SamplingParams(temperature=temperature, seed=4), [0], [])
    rows = [Row(0, position) for position in range(num_positions)]
    pairs = zip(*(sampler.choose(logits.expand(num_positions, -1), rows) for logits in (target, draft)), strict=True)
    agreement = sum(ours == theirs for ours, theirs in pairs) / num_positions
    variation = float(((target / temperature).softmax(0) - (draft / temperature).softmax(0)).abs().sum()) / 2
    assert 0.1 < variation < 0.5
    bound = (1 - variation) / (1 + variation)
    assert agreement >= bound - 4 * math.sqrt(bound * (1 - bound) / num_positions)


def assert_equal_one_by_one(sampler: Sampler, logits: torch.Tensor, rows: list[Row]) -> None:
    choices = sampler.choose(logits, rows)
    proposals, margins = sampler.propose(logits, rows, 4)
    for index, row in enumerate(rows):
        alone = logits[index : index + 1]
        assert sampler.choose(alone, [row]) == [choices[index]]
        token_ids, its_margins = sampler.propose(alone, [row], 4)
        assert token_ids == [proposals[index]]
        assert its_margins[0] == pytest.approx(margins[index], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mixed_batch_equals_its_rows_one_by_one(dtype):
    rows = [Row(slot, 50 + 3 * slot + at, (8,) * at) for at in range(4) for slot in range(len(ALL_KINDS))]
    assert_equal_one_by_one(opened(*ALL_KINDS), random_logits(len(rows)).to(dtype), rows)


def test_every_pair_of_kinds_goes_together():
    """What one row needs must not leak into another, nor be skipped because the other does without it."""
    sampler = opened(*ALL_KINDS)
    for first in range(len(ALL_KINDS)):
        for second in range(first):
            assert_equal_one_by_one(sampler, random_logits(2, seed=first), [Row(first, 9), Row(second, 30)])


@pytest.mark.parametrize("shape", [{}, dict(top_k=20), dict(top_p=0.9), dict(min_p=0.1)], ids=str)
def test_extreme_temperatures(shape):
    rows = [Row(0, position) for position in range(20)]
    logits = random_logits(20)
    coldest = SamplingParams(temperature=torch.finfo(torch.float32).smallest_normal * 2.0**-23, **shape)
    assert opened(coldest).choose(logits, rows) == logits.argmax(-1).tolist()
    _, margins = opened(coldest).propose(logits, rows, 3)
    assert all(margin >= 0.0 for row in margins for margin in row)
    assert len(set(opened(SamplingParams(temperature=100.0, **shape)).choose(logits, rows))) > 15


def test_a_row_of_nan_harms_no_other():
    sampler = opened(*ALL_KINDS)
    rows = [Row(slot, 10) for slot in range(len(ALL_KINDS))]
    logits = random_logits(len(rows))
    whole_choices, whole_proposals = sampler.choose(logits, rows), sampler.propose(logits, rows, 2)
    for broken in range(len(rows)):
        for value in (math.nan, math.inf):
            logits_broken = logits.clone()
            logits_broken[broken, 5] = value
            choices = sampler.choose(logits_broken, rows)
            proposals, margins = sampler.propose(logits_broken, rows, 2)
            assert 0 <= choices[broken] < VOCAB_SIZE
            assert all(0 <= token_id < VOCAB_SIZE for token_id in proposals[broken])
            for index in set(range(len(rows))) - {broken}:
                assert choices[index] == whole_choices[index]
                assert proposals[index] == whole_proposals[0][index]
                assert margins[index] == pytest.approx(whole_proposals[1][index], abs=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_chooses_the_same():
    rows = [Row(slot, position, (1, 2)) for position in range(30) for slot in range(len(ALL_KINDS))]
    logits = random_logits(len(rows)).bfloat16()
    on_cpu = opened(*ALL_KINDS)
    on_cuda = Sampler(VOCAB_SIZE, len(ALL_KINDS), torch.device("cuda"))
    for slot, params in enumerate(ALL_KINDS):
        on_cuda.open(slot, params, PROMPT, OUTPUT)
    assert on_cuda.choose(logits.cuda(), rows) == on_cpu.choose(logits, rows)
    assert on_cuda.propose(logits.cuda(), rows, 4)[0] == on_cpu.propose(logits, rows, 4)[0]
