"""What a draft proposes beside the choice and by which margins, and the log-probabilities that are reported."""

import math

import pytest
import torch

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row
from tests.engine.samplers import ALL_KINDS, EVERYTHING, GREEDY, VOCAB_SIZE, WARM, noise_of, opened, random_logits

pytestmark = pytest.mark.usefixtures("each_chooser")


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
    proposals, margins = sampler.propose(logits, [Row(slot, 10) for slot in range(5)], 8)
    assert [len(proposal) for proposal in proposals] == [1, 3, 8, 8, 1]
    assert [len(row) for row in margins] == [1, 3, 8, 8, 1]
    assert proposals[4] == [6]
    assert all(0.0 <= margin < math.inf for row in margins if len(row) > 1 for margin in row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_margins_are_the_distances_of_perturbed_scores(dtype):
    kinds = [GREEDY, WARM, SamplingParams(temperature=2.5, seed=8), SamplingParams(temperature=0.6, top_k=20, seed=9)]
    sampler = opened(*kinds)
    rows = [Row(slot, position) for position in range(12) for slot in range(len(kinds))]
    logits = random_logits(len(rows)).to(dtype)
    temperatures = torch.tensor([[kinds[row.slot].temperature or 1.0] for row in rows], dtype=torch.float64)
    scores = logits.double() / temperatures
    for index, row in enumerate(rows):
        if kinds[row.slot].top_k:
            kept = logits[index].sort(stable=True, descending=True).indices[: kinds[row.slot].top_k]
            scores[index] = torch.full_like(scores[index], -math.inf).index_copy_(0, kept, scores[index, kept])
    best = (scores + noise_of(sampler, rows)).topk(6)
    proposals, margins = sampler.propose(logits, rows, 6)
    for index, (proposal, row_margins) in enumerate(zip(proposals, margins, strict=True)):
        if rows[index].slot != 0 or dtype is torch.float32:  # of equal scores topk may take any first
            assert proposal == best.indices[index].tolist()
        behind = (best.values[index, 0] - best.values[index]).tolist()
        assert row_margins == pytest.approx([behind[1], *behind[1:]], abs=1e-9)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_first_margin_is_that_over_the_second_however_many_are_proposed(width):
    sampler = opened(*ALL_KINDS)
    rows = [Row(slot, 20 + slot) for slot in range(len(ALL_KINDS))]
    logits = random_logits(len(rows))
    proposals, margins = sampler.propose(logits, rows, width)
    wider_proposals, wider_margins = sampler.propose(logits, rows, 8)
    assert proposals == [proposal[:width] for proposal in wider_proposals]
    assert margins == [row[:width] for row in wider_margins]
    assert all(row[0] == row[1] for row in wider_margins if len(row) > 1)


@pytest.mark.parametrize("width", [1, 8])
def test_nothing_comes_near_a_lone_survivor(width):
    logits = random_logits(4)
    logits[2:] = -math.inf
    logits[2:, 6] = 0.0
    sampler = opened(
        SamplingParams(temperature=1.0, top_k=1), SamplingParams(temperature=1.0, top_p=1e-6), GREEDY, WARM
    )
    proposals, margins = sampler.propose(logits, [Row(slot, 10) for slot in range(4)], width)
    assert [len(proposal) for proposal in proposals] == [1, 1, 1, 1]
    assert margins == [[math.inf]] * 4


def test_no_rows():
    sampler = opened(WARM)
    assert sampler.choose(torch.empty(0, VOCAB_SIZE), []) == []
    assert sampler.propose(torch.empty(0, VOCAB_SIZE), [], 3) == ([], [])
    assert sampler.logprobs(torch.empty(0, VOCAB_SIZE), [], 3) == ()


def test_a_neighbour_with_top_p_costs_a_row_no_unlikely_token():
    """Beside a token of probability 1 - 1e-17, sums round to 1 at once; only top-p may draw a conclusion from that."""
    sampler = opened(WARM, SamplingParams(temperature=1.0, top_p=0.7))
    logits = random_logits(2)
    logits[0, 9] = 60.0
    proposals, _ = sampler.propose(logits, [Row(0, 10), Row(1, 10)], 4)
    assert [proposals[0]] == sampler.propose(logits[:1], [Row(0, 10)], 4)[0]


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


@pytest.mark.parametrize("num_top", [0, 1, 5, VOCAB_SIZE + 3])
def test_logprobs_are_those_of_the_unprocessed_logits(num_top):
    logits = random_logits(3)
    log_probs = logits.log_softmax(-1)
    for row, answer in enumerate(opened(EVERYTHING).logprobs(logits, [7, 0, 502], num_top)):
        assert answer.logprob == pytest.approx(float(log_probs[row, [7, 0, 502][row]]), abs=1e-5)
        top = log_probs[row].topk(min(num_top, VOCAB_SIZE))
        assert answer.top_token_ids == tuple(top.indices.tolist())
        assert answer.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-5)
