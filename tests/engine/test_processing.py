"""What becomes of logits before the choice: bias, penalties and filters, by their definitions and by transformers."""

import math
from collections import Counter

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

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.sampler import Row
from tests.engine.samplers import (
    ALL_KINDS,
    EVERYTHING,
    GREEDY,
    OUTPUT,
    PENALIZED,
    PROMPT,
    VOCAB_SIZE,
    WARM,
    opened,
    processed_log_probs,
    random_logits,
)

pytestmark = pytest.mark.usefixtures("each_chooser")


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
    theirs = processors(torch.tensor([PROMPT + OUTPUT]).expand(20, -1), logits.clone()).log_softmax(-1)  # pyright: ignore[reportArgumentType]
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
