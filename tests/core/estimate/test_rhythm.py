"""The rhythm of rounds: when it matters whether a window is sent now or a little later."""

from __future__ import annotations

import math
from random import Random

import pytest

from outrider.core.estimate.rhythm import Rhythm

PERIOD, STEP, DELAY = 10.0, 9.0, 3.0
"""Of rounds, the verifier's part of that, and how long news of a round takes."""


def learned(num_rounds: int = 40, scatter: float = 0.0) -> tuple[Rhythm, float]:
    """After so many rounds of two tokens, with steps that differ from STEP by up to `scatter`; also when the next round
    begins."""
    rhythm, rng, cutoff = Rhythm(), Random(3), 100.0
    for _ in range(num_rounds):
        seconds = STEP + rng.uniform(-scatter, scatter)
        rhythm.observe(cutoff, seconds, 2, cutoff + seconds + DELAY)
        cutoff += seconds + PERIOD - STEP
    return rhythm, cutoff


def test_before_two_rounds_were_decided_every_moment_matters() -> None:
    rhythm = Rhythm()
    assert rhythm.chance(5.0, 1.0) == 1.0
    rhythm.observe(10.0, STEP, 2, 22.0)
    assert rhythm.chance(22.0, 0.001) == 1.0
    rhythm.observe(20.0, STEP, 2, 32.0)
    assert rhythm.chance(35.0, 0.001) < 0.1


def test_only_the_moment_before_a_round_begins_matters() -> None:
    rhythm, begun = learned()
    due = begun + PERIOD  # the next one began while news of the last was on its way
    assert rhythm.chance(due - 0.5, 1.0) > 0.3
    for far in (due - 5.0, due - 4.0, due + 3.0):
        assert rhythm.chance(far, 1.0) < 0.05
    assert rhythm.chance(due - 5.0, 8.0) > 0.9, "for who looks again so late"


def test_the_more_rounds_scatter_the_longer_a_round_may_begin() -> None:
    (steady, begun), (unsteady, unsteadily_begun) = learned(), learned(scatter=4.0)
    assert steady.chance(begun + PERIOD - 4.0, 1.0) < 0.03
    assert 0.05 < unsteady.chance(unsteadily_begun + PERIOD - 4.0, 1.0) < 0.3


def test_all_chances_of_a_period_add_up_to_a_round() -> None:
    rhythm, begun = learned(scatter=1.0)
    begin = begun + PERIOD / 2
    assert sum(rhythm.chance(begin + 0.1 * index, 0.1) for index in range(80)) == pytest.approx(1.0, abs=0.1)


def test_while_the_verifier_may_be_waiting_every_moment_matters() -> None:
    rhythm, begun = learned()
    heard = begun - (PERIOD - STEP) + DELAY
    assert rhythm.chance(heard + 0.2 * PERIOD, 0.001) == 1.0
    assert rhythm.chance(heard + 0.3 * PERIOD, 0.001) < 0.1


def test_when_news_is_overdue_the_verifier_may_be_waiting_too() -> None:
    rhythm, begun = learned()
    heard = begun - (PERIOD - STEP) + DELAY
    assert rhythm.chance(heard + 0.9 * PERIOD, 0.1) < 0.5
    assert rhythm.chance(heard + 1.3 * PERIOD, 0.1) == 1.0


def test_one_pause_hardly_changes_it() -> None:
    rhythm, begun = learned()
    begun += 1000.0
    for _ in range(8):
        rhythm.observe(begun, STEP, 2, begun + STEP + DELAY)
        begun += PERIOD
    assert rhythm.chance(begun + PERIOD - 0.5, 4.0) > 0.3


def test_rounds_that_become_shorter_are_followed() -> None:
    rhythm, begun = learned()
    for _ in range(40):
        rhythm.observe(begun, STEP / 3, 2, begun + STEP / 3 + DELAY)
        begun += PERIOD / 3
    due = begun + PERIOD / 3
    assert rhythm.chance(due - 0.3, 0.6) > 0.5


def test_what_a_token_takes_is_learned() -> None:
    assert 0.0 < Rhythm().token_seconds < 0.01
    rhythm, _ = learned()
    assert rhythm.token_seconds == pytest.approx(PERIOD / 2, rel=0.01)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, 99.0, 1e9, math.nan, math.inf])
def test_what_cannot_be_teaches_nothing(cutoff: float) -> None:
    rhythm, begun = learned()
    rhythm.observe(cutoff, STEP, 2, begun + STEP + DELAY)
    assert rhythm.chance(begun + PERIOD - 0.5, 1.0) > 0.3
