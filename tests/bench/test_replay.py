"""Modes on the target's own text: guesses are the draft model's, times are told, and the same run says the same."""

from __future__ import annotations

import pytest
import torch

from bench.rivals.modes import MODES
from bench.simulate.replay import UnreplayableModeError, replay, write
from bench.simulate.virtual import Times
from outrider.engine.engine import Engine
from tests.engine.tiny_models import VOCAB_SIZE, build

TIMES = Times(
    draft=lambda num_nodes: 1.0, verify=lambda num_nodes: 10.0 + 0.1 * num_nodes, delay=0.5, pause=0.1, rest=0.2
)
PROMPTS = [[(7 * index + shift) % VOCAB_SIZE for index in range(12)] for shift in range(5)]
NUM_TOKENS = 24


def engine() -> Engine:
    return Engine(build("llama"), max_sessions=1, max_context=160)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_that_is_the_target_is_always_right(temperature: float) -> None:
    target = engine()
    with torch.inference_mode():
        answers = write(target, PROMPTS, temperature, NUM_TOKENS)
        outcome = replay(MODES["sync_4"], engine(), PROMPTS, answers, temperature, TIMES)
    assert {len(answer) for answer in answers} == {NUM_TOKENS}
    # The prompt's own round decides one token, each later one four drafts and one more, the last one what is left.
    assert outcome.acceptance_length == pytest.approx(NUM_TOKENS / (1 + 5), rel=0.01)


def test_the_same_run_says_the_same_and_another_mode_something_else() -> None:
    with torch.inference_mode():
        answers = write(engine(), PROMPTS, 0.8, NUM_TOKENS)
        draft = engine()
        first, again, other = (
            replay(MODES[name], draft, PROMPTS, answers, 0.8, TIMES) for name in ("outrider", "outrider", "sync_1")
        )
    assert first == again
    assert first != other
    assert first.time_per_token < TIMES.verify(0)
    assert draft.num_free_slots == 1


@pytest.mark.parametrize("name", ["transformers", "no_compile", "padded", "padded_sync_2"])
def test_what_the_clock_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(UnreplayableModeError, match=name):
        replay(MODES[name], engine(), PROMPTS[:1], [[1]], 0.0, TIMES)
