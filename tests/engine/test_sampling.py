"""The sampler draws from the processed distribution, and a row's token depends on nothing but the row."""

import math
from collections import Counter
from statistics import NormalDist

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from outrider.core.sampling import SamplingParams
from outrider.engine.sampling import Row, Sampler

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
    """The distribution [R, V] that each row samples: everything that survives is proposed."""
    log_probs = torch.full(logits.shape, -math.inf)
    for row, (token_ids, its_log_probs) in enumerate(zip(*sampler.propose(logits, rows, logits.shape[1]), strict=True)):
        assert len(set(token_ids)) == len(token_ids)
        log_probs[row, token_ids] = torch.tensor(its_log_probs)
    return log_probs


# --- the distribution ---


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


# --- processing ---


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=50),
        SamplingParams(temperature=1.0, top_k=VOCAB_SIZE + 1),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=1.4, top_p=0.3),
        SamplingParams(temperature=1.0, min_p=0.05),
        SamplingParams(temperature=1.0, min_p=1.0),
        SamplingParams(temperature=0.9, repetition_penalty=1.3),
        SamplingParams(temperature=0.9, repetition_penalty=0.7),
        SamplingParams(temperature=1.5, top_k=100, top_p=0.8, min_p=0.03, repetition_penalty=1.2),
    ],
    ids=str,
)
def test_equals_the_processors_of_transformers(params):
    logits = random_logits(20)
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    theirs = processors(torch.tensor([PROMPT + OUTPUT]).expand(20, -1), logits.clone()).log_softmax(-1)
    ours = processed_log_probs(opened(params), logits, [Row(0, position) for position in range(20)])
    assert torch.equal(ours > -math.inf, theirs > -math.inf)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bias_and_penalties_by_their_definitions():
    params = SamplingParams(
        repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.3, logit_bias=((3, 5.0), (8, -5.0))
    )
    logits = random_logits(1)
    expected = logits[0].tolist()
    expected[3] += 5.0
    expected[8] -= 5.0
    for token in {*PROMPT, *OUTPUT}:
        expected[token] = expected[token] * 1.5 if expected[token] < 0 else expected[token] / 1.5
    for token, count in Counter(OUTPUT).items():
        expected[token] -= 0.3 * count + 0.4
    ours = processed_log_probs(opened(params), logits, [Row(0, 10)])
    torch.testing.assert_close(ours[0], torch.tensor(expected).log_softmax(0), rtol=1e-5, atol=1e-5)


def test_greedy_obeys_bias_and_penalties():
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 4] = 2.0
    logits[0, 350] = 1.5
    row = [Row(0, 10)]
    assert opened(GREEDY).choose(logits, row) == [4]
    assert opened(SamplingParams(frequency_penalty=0.2)).choose(logits, row) == [350]
    assert opened(SamplingParams(presence_penalty=0.4)).choose(logits, row) == [4]
    assert opened(SamplingParams(repetition_penalty=1.5)).choose(logits, row) == [350]
    assert opened(SamplingParams(logit_bias=((77, 2.5),))).choose(logits, row) == [77]


@pytest.mark.parametrize("params", [PENALIZED, EVERYTHING], ids=["greedy", "sampled"])
def test_a_path_counts_as_output(params):
    """What is chosen after a path of guesses is what is chosen once the path is committed."""
    logits = random_logits(50)
    path = (480, 4, 4, 17, 480)
    sampler = opened(params)
    bare = [Row(0, position) for position in range(50)]
    without = processed_log_probs(sampler, logits, bare)
    with_path = [Row(0, position, path) for position in range(50)]
    ahead = processed_log_probs(sampler, logits, with_path)
    choices = sampler.choose(logits, with_path)
    torch.testing.assert_close(processed_log_probs(sampler, logits, bare), without, rtol=0, atol=0)
    assert not torch.equal(ahead, without)

    sampler.commit(0, path[:2])
    sampler.commit(0, path[2:])
    assert torch.equal(processed_log_probs(sampler, logits, bare), ahead)
    assert sampler.choose(logits, bare) == choices

    sampler.open(0, params, PROMPT, [*OUTPUT, *path])
    assert sampler.choose(logits, bare) == choices


def test_paths_of_one_tree_do_not_touch_each_other():
    sampler = opened(PENALIZED)
    logits = random_logits(1).expand(4, -1)
    rows = [Row(0, 10), Row(0, 11, (5,)), Row(0, 11, (6,)), Row(0, 12, (5, 6))]
    together = processed_log_probs(sampler, logits, rows)
    for index, row in enumerate(rows):
        assert torch.equal(processed_log_probs(sampler, logits[:1], [row])[0], together[index])


def test_a_slot_keeps_nothing_of_the_session_before():
    logits = random_logits(10)
    rows = [Row(0, position) for position in range(10)]
    for params in (GREEDY, WARM, PENALIZED, EVERYTHING):
        sampler = opened(EVERYTHING)
        sampler.open(0, EVERYTHING, [250, 251], [252])
        sampler.commit(0, [253])
        sampler.close(0)
        sampler.close(0)
        sampler.open(0, params, PROMPT, OUTPUT)
        assert sampler.propose(logits, rows, 5) == opened(params).propose(logits, rows, 5)


def test_logits_stay_as_they_are():
    logits = random_logits(len(ALL_KINDS))
    before = logits.clone()
    rows = [Row(slot, 10, (1,)) for slot in range(len(ALL_KINDS))]
    sampler = opened(*ALL_KINDS)
    sampler.choose(logits, rows)
    sampler.propose(logits, rows, 3)
    sampler.logprobs(logits, [0] * len(rows), 2)
    assert torch.equal(logits, before)


# --- rows ---


def assert_equal_one_by_one(sampler: Sampler, logits: torch.Tensor, rows: list[Row]) -> None:
    choices = sampler.choose(logits, rows)
    proposals, log_probs = sampler.propose(logits, rows, 4)
    for index, row in enumerate(rows):
        alone = logits[index : index + 1]
        assert sampler.choose(alone, [row]) == [choices[index]]
        token_ids, its_log_probs = sampler.propose(alone, [row], 4)
        assert token_ids == [proposals[index]]
        assert its_log_probs[0] == pytest.approx(log_probs[index], abs=1e-5)


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


def test_a_neighbour_with_top_p_costs_a_row_no_unlikely_token():
    """Beside a token of probability 1 - 1e-17, sums round to 1 at once; only top-p may draw a conclusion from that."""
    sampler = opened(WARM, SamplingParams(temperature=1.0, top_p=0.7))
    logits = random_logits(2)
    logits[0, 9] = 60.0
    proposals, _ = sampler.propose(logits, [Row(0, 10), Row(1, 10)], 4)
    assert [proposals[0]] == sampler.propose(logits[:1], [Row(0, 10)], 4)[0]


def test_the_first_proposal_is_the_choice():
    sampler = opened(*ALL_KINDS)
    rows = [Row(slot, position) for position in range(30) for slot in range(len(ALL_KINDS))]
    logits = random_logits(len(rows))
    proposals, _ = sampler.propose(logits, rows, 3)
    assert [proposal[0] for proposal in proposals] == sampler.choose(logits, rows)
    assert all(len(set(proposal)) == len(proposal) for proposal in proposals)


def test_proposals_are_the_choices_without_the_better_ones():
    """The second proposal is what would be chosen if the first did not exist."""
    sampler = opened(WARM, GREEDY)
    rows = [Row(slot, position) for position in range(10) for slot in range(2)]
    logits = random_logits(len(rows))
    proposals, _ = sampler.propose(logits, rows, 3)
    for place in range(3):
        assert [proposal[place] for proposal in proposals] == sampler.choose(logits, rows)
        for index, proposal in enumerate(proposals):
            logits[index, proposal[place]] = -math.inf


def test_a_row_proposes_no_more_than_survives():
    sampler = opened(
        SamplingParams(temperature=1.0, top_k=1), SamplingParams(temperature=1.0, top_k=3), WARM, GREEDY, GREEDY
    )
    logits = random_logits(5)
    logits[4] = -math.inf
    logits[4, 6] = 0.0
    proposals, log_probs = sampler.propose(logits, [Row(slot, 10) for slot in range(5)], 8)
    assert [len(proposal) for proposal in proposals] == [1, 3, 8, 8, 1]
    assert proposals[4] == [6]
    assert log_probs[0] == log_probs[4] == [0.0]
    assert math.fsum(map(math.exp, log_probs[1])) == pytest.approx(1.0)
    assert all(-math.inf < log_prob <= 0.0 for row in log_probs for log_prob in row)


def test_no_rows():
    sampler = opened(WARM)
    assert sampler.choose(torch.empty(0, VOCAB_SIZE), []) == []
    assert sampler.propose(torch.empty(0, VOCAB_SIZE), [], 3) == ([], [])
    assert sampler.logprobs(torch.empty(0, VOCAB_SIZE), [], 3) == ()


# --- extremes ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_logits_the_lowest_ids_come_first(dtype):
    logits = torch.zeros(1, VOCAB_SIZE, dtype=dtype)
    logits[0, [10, 20, 300, 480]] = 1.0
    logits[0, ::7] = -0.0
    logits[0, 300] = 1.0
    row = [Row(0, 10)]
    assert opened(GREEDY).choose(logits, row) == [10]
    assert opened(GREEDY).propose(logits, row, 7)[0] == [[10, 20, 300, 480, 0, 1, 2]]
    assert opened(SamplingParams(logit_bias=((1, 0.5),))).propose(logits, row, 6)[0] == [[10, 20, 300, 480, 1, 0]]
    assert set(opened(SamplingParams(temperature=1.0, top_k=6)).propose(logits, row, 9)[0][0]) == {
        10,
        20,
        300,
        480,
        0,
        1,
    }


@pytest.mark.parametrize("shape", [{}, dict(top_k=20), dict(top_p=0.9), dict(min_p=0.1)], ids=str)
def test_extreme_temperatures(shape):
    rows = [Row(0, position) for position in range(20)]
    logits = random_logits(20)
    coldest = SamplingParams(temperature=torch.finfo(torch.float32).smallest_normal * 2.0**-23, **shape)
    assert opened(coldest).choose(logits, rows) == logits.argmax(-1).tolist()
    _, log_probs = opened(coldest).propose(logits, rows, 3)
    assert all(-math.inf < log_prob <= 0.0 for row in log_probs for log_prob in row)
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
            proposals, log_probs = sampler.propose(logits_broken, rows, 2)
            assert 0 <= choices[broken] < VOCAB_SIZE
            assert all(-math.inf < log_prob <= 0.0 for log_prob in log_probs[broken])
            for index in set(range(len(rows))) - {broken}:
                assert choices[index] == whole_choices[index]
                assert proposals[index] == whole_proposals[0][index]


# --- log-probabilities ---


@pytest.mark.parametrize("num_top", [0, 1, 5, VOCAB_SIZE + 3])
def test_logprobs_are_those_of_the_unprocessed_logits(num_top):
    logits = random_logits(3)
    log_probs = logits.log_softmax(-1)
    for row, answer in enumerate(opened(EVERYTHING).logprobs(logits, [7, 0, 502], num_top)):
        assert answer.logprob == pytest.approx(float(log_probs[row, [7, 0, 502][row]]), abs=1e-5)
        top = log_probs[row].topk(min(num_top, VOCAB_SIZE))
        assert answer.top_token_ids == tuple(top.indices.tolist())
        assert answer.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-5)


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
