"""Waiting for drafts: never without a reason, never without an end. Times are in seconds and never measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.patience import Patience

TIMES = st.floats(0.0, 10.0)
COUNTS = st.integers(0, 20)


def observed(*, accepted: int, rejected: int, verify_step: float, draft_step: float) -> Patience:
    """An estimate after so many accepted and rejected draft tokens, each in a round of its own."""
    patience = Patience()
    for _ in range(accepted):
        patience.observe_round(1, False, verify_step)
    for _ in range(rejected):
        patience.observe_round(0, True, verify_step)
    patience.observe_window(1, draft_step)
    return patience


def test_before_the_first_round_nobody_waits() -> None:
    assert Patience().wait(0, 8, 0.0) == 0.0
    assert Patience().wait(3, 8, 0.0) == 0.0


@given(
    rounds=st.lists(st.tuples(COUNTS, st.booleans(), TIMES), max_size=5),
    windows=st.lists(st.tuples(st.integers(1, 20), TIMES), max_size=5),
    first_drafts=st.lists(st.tuples(st.booleans(), TIMES), max_size=5),
    num_ready=COUNTS,
    num_room=COUNTS,
    elapsed=TIMES,
)
def test_no_wait_outlasts_one_verify_step(
    rounds: list[tuple[int, bool, float]],
    windows: list[tuple[int, float]],
    first_drafts: list[tuple[bool, float]],
    num_ready: int,
    num_room: int,
    elapsed: float,
) -> None:
    patience = Patience()
    for num_accepted, rejected, verify_step in rounds:
        patience.observe_round(num_accepted, rejected, verify_step)
    for num_levels, draft_time in windows:
        patience.observe_window(num_levels, draft_time)
    for came, after in first_drafts:
        (patience.observe_first_draft if came else patience.observe_no_draft)(after)
    longest_step = max((verify_step for *_, verify_step in rounds), default=0.0)
    assert 0.0 <= patience.wait(num_ready, num_room, elapsed) <= max(longest_step - elapsed, 0.0) + 1e-9


def test_quick_drafts_that_are_mostly_right_are_worth_a_wait() -> None:
    patience = observed(accepted=50, rejected=0, verify_step=1.0, draft_step=0.01)
    assert patience.wait(0, 8, 0.0) > 0.0
    assert patience.wait(2, 8, 0.0) > 0.0


def test_drafts_that_are_mostly_wrong_are_not() -> None:
    patience = observed(accepted=0, rejected=50, verify_step=1.0, draft_step=0.2)
    assert patience.wait(0, 8, 0.0) == 0.0


def test_slow_drafts_are_not_waited_for_when_some_are_at_hand() -> None:
    patience = observed(accepted=5, rejected=5, verify_step=1.0, draft_step=0.9)
    assert patience.wait(1, 8, 0.0) == 0.0


def test_a_full_step_waits_for_nothing() -> None:
    patience = observed(accepted=50, rejected=0, verify_step=1.0, draft_step=0.01)
    assert patience.wait(8, 0, 0.0) == 0.0


@pytest.mark.parametrize("elapsed", [1.0, 5.0])
def test_after_a_verify_step_the_wait_is_over(elapsed: float) -> None:
    patience = observed(accepted=50, rejected=0, verify_step=1.0, draft_step=0.01)
    assert patience.wait(0, 8, elapsed) == 0.0


def test_the_more_is_at_hand_the_less_a_wait_is_worth() -> None:
    patience = observed(accepted=6, rejected=2, verify_step=1.0, draft_step=0.1)
    waits = [patience.wait(num_ready, 8, 0.0) for num_ready in range(1, 12)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > 0.0
    assert waits[-1] == 0.0


def test_a_drafter_that_fails_to_come_is_waited_for_less_and_less() -> None:
    patience = observed(accepted=5, rejected=5, verify_step=1.0, draft_step=0.01)
    patience.observe_first_draft(0.1)
    assert patience.wait(0, 8, 0.0) > 0.0
    for _ in range(20):
        patience.observe_no_draft(1.0)
    assert patience.wait(0, 8, 0.0) == 0.0


def test_a_window_of_several_levels_took_several_draft_steps() -> None:
    one, four = Patience(), Patience()
    one.observe_window(1, 0.1)
    four.observe_window(4, 0.4)
    for patience in (one, four):
        patience.observe_round(3, False, 1.0)
    assert one.wait(1, 8, 0.0) == four.wait(1, 8, 0.0) > 0.0
