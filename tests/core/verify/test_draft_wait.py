"""Waiting for drafts: never without a reason, never without an end. Times are in seconds and never measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.verify.draft_wait import AT_ONCE, DraftWait, ReadyDrafts

TIMES = st.floats(0.0, 10.0)
PROBABILITIES = st.floats(0.0, 1.0)
STEP = 1.0
BARE = ReadyDrafts(no_drafts=True, leaf_probability=1.0, step_now=STEP, step_later=STEP)


def at_hand(leaf_probability: float) -> ReadyDrafts:
    return ReadyDrafts(no_drafts=False, leaf_probability=leaf_probability, step_now=STEP, step_later=STEP)


def observed(*, coverage: float, first_draft: float, level: float) -> DraftWait:
    """After long experience of such drafts."""
    draft_wait = DraftWait()
    for _ in range(20):
        draft_wait.observe_places([1.0] * round(10 * coverage) + [0.0] * (10 - round(10 * coverage)))
        draft_wait.observe_first_draft(first_draft)
        draft_wait.observe_levels(1, level)
    return draft_wait


def test_before_the_first_draft_nobody_waits() -> None:
    assert DraftWait().wait(BARE, 8, 0.0) == AT_ONCE


def test_before_the_first_step_nobody_waits() -> None:
    draft_wait = observed(coverage=1.0, first_draft=0.01, level=0.01)
    assert draft_wait.wait(ReadyDrafts(True, 1.0, 0.0, 0.0), 8, 0.0) == AT_ONCE


@given(
    places=st.lists(st.floats(-8.0, 1.0), max_size=20),
    levels=st.lists(st.tuples(st.integers(1, 20), TIMES), max_size=5),
    first_drafts=st.lists(TIMES, max_size=5),
    failures=st.lists(st.tuples(TIMES, st.booleans()), max_size=5),
    ready_drafts=st.builds(ReadyDrafts, st.booleans(), PROBABILITIES, TIMES, TIMES),
    num_room=st.integers(-1, 20),
    elapsed=TIMES,
)
def test_a_wait_is_bounded_by_what_the_present_run_of_luck_can_take(
    places: list[float],
    levels: list[tuple[int, float]],
    first_drafts: list[float],
    failures: list[tuple[float, bool]],
    ready_drafts: ReadyDrafts,
    num_room: int,
    elapsed: float,
) -> None:
    draft_wait = DraftWait()
    draft_wait.observe_places(places)
    for each in levels:
        draft_wait.observe_levels(*each)
    for each in first_drafts:
        draft_wait.observe_first_draft(each)
    for seconds, with_drafts in failures:
        draft_wait.observe_no_draft(seconds, with_drafts)
    expected, wait, gain = draft_wait.wait(ready_drafts, num_room, elapsed)
    longest_run = ready_drafts.step_now + 100.0 * ready_drafts.step_later
    assert 0.0 <= wait <= 1.5 * longest_run
    assert wait == 0.0 or elapsed <= longest_run
    assert (expected > 0.0, gain > 0.0) == (wait > 0.0, wait > 0.0)
    assert expected <= wait


@pytest.mark.parametrize("first_draft", [0.01, 0.1, 0.2])
def test_with_a_quick_draft_and_nothing_at_hand_it_waits(first_draft: float) -> None:
    draft_wait = observed(coverage=0.7, first_draft=first_draft, level=0.02)
    wait = draft_wait.wait(BARE, 8, 0.0)
    assert wait.expected == pytest.approx(first_draft)
    assert first_draft < wait.longest < 2.0 * first_draft


def test_a_useless_draft_is_not_waited_for() -> None:
    draft_wait = observed(coverage=0.0, first_draft=0.1, level=0.01)
    assert draft_wait.wait(BARE, 8, 0.0) == AT_ONCE


def test_a_first_draft_that_takes_longer_than_it_saves_is_not_waited_for() -> None:
    assert observed(coverage=0.55, first_draft=0.6, level=0.4).wait(BARE, 8, 0.0) == AT_ONCE


def test_going_at_once_is_not_lost_when_drafts_keep_coming_meanwhile() -> None:
    """If rounds stood alone, a wait of 0.7 for 0.75 tokens would pay: 1.75 / 1.7 against 1 / 1.

    But what is drafted during the step counts in the next round.
    """
    assert observed(coverage=0.75, first_draft=0.7, level=0.25).wait(BARE, 8, 0.0) == AT_ONCE


def test_the_surer_the_path_at_hand_the_more_another_level_is_worth() -> None:
    draft_wait = observed(coverage=0.8, first_draft=0.1, level=0.05)
    assert draft_wait.wait(at_hand(0.9), 8, 0.0).longest > 0.0
    assert draft_wait.wait(at_hand(0.1), 8, 0.0) == AT_ONCE


def test_a_wait_that_promises_little_is_left() -> None:
    """Without a bound the level of 0.1 would be waited for: it is worth 0.11 of a step."""
    assert observed(coverage=0.8, first_draft=0.1, level=0.1).wait(at_hand(0.9), 8, 0.0) == AT_ONCE


def test_a_full_step_waits_for_nothing() -> None:
    assert observed(coverage=0.95, first_draft=0.01, level=0.01).wait(at_hand(1.0), 0, 0.0) == AT_ONCE


def test_time_that_has_passed_counts_towards_the_first_draft() -> None:
    draft_wait = observed(coverage=0.7, first_draft=0.2, level=0.02)
    assert draft_wait.wait(BARE, 8, 0.15) < draft_wait.wait(BARE, 8, 0.0)


def test_a_drafter_that_fails_to_come_is_waited_for_no_more() -> None:
    draft_wait = observed(coverage=0.7, first_draft=0.1, level=0.01)
    num_waits = 0
    while (wait := draft_wait.wait(BARE, 8, 0.0).longest) > 0.0:
        draft_wait.observe_no_draft(wait, at_hand=False)
        num_waits += 1
        assert num_waits < 10
    assert num_waits > 0


def test_levels_that_fail_to_come_are_waited_for_no_more() -> None:
    draft_wait = observed(coverage=0.7, first_draft=0.1, level=0.05)
    num_waits = 0
    while (wait := draft_wait.wait(at_hand(0.9), 8, 0.0).longest) > 0.0:
        draft_wait.observe_no_draft(wait, at_hand=True)
        num_waits += 1
        assert num_waits < 20
    assert num_waits > 0


def test_one_hiccup_does_not_end_all_waiting() -> None:
    draft_wait = observed(coverage=0.7, first_draft=0.1, level=0.01)
    draft_wait.observe_first_draft(5.0)
    assert draft_wait.wait(BARE, 8, 0.0).longest > 0.0


def test_a_session_starts_from_what_others_have_learned() -> None:
    shared = observed(coverage=0.7, first_draft=0.1, level=0.02)
    session = DraftWait(shared)
    assert session.wait(BARE, 8, 0.0) == shared.wait(BARE, 8, 0.0) > AT_ONCE
    session.observe_places([0.0] * 200)
    assert session.wait(BARE, 8, 0.0) == AT_ONCE < shared.wait(BARE, 8, 0.0)
