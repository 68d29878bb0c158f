"""Windows: which sessions send what they have drafted, and when."""

from __future__ import annotations

import math
from itertools import repeat

import pytest

from outrider.core.draft.session import DraftSession
from outrider.core.draft.windows import MESSAGE_SECONDS, WINDOW_SECONDS, due, num_levels_held
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams

LEVEL, PERIOD, DELAY = 1e-3, 20e-3, 1e-3


def opened() -> DraftSession:
    """A session at the end of the line [7, 8, 9]."""
    return DraftSession(
        DraftOpen(
            session_id="s",
            token_ids=[7, 8, 9],
            num_prompt_tokens=2,
            sampling=SamplingParams(),
            max_run_ahead=100,
            tree_width=1,
            max_length=1000,
            vocab_size=100,
        )
    )


def in_rhythm(num_rounds: int = 10) -> tuple[DraftSession, float]:
    """A session of which rounds begin every PERIOD, two of its guesses accepted in each and one at hand; also when it
    heard of the last one, just now."""
    session = opened()
    begun = 0.1
    for _ in range(num_rounds):
        draft(session, 3 - session.tree.num_live)
        session.take_window(0.0, begun)
        commit(session, [1, 1], begun)
        begun += PERIOD
    return session, begun + DELAY


def commit(session: DraftSession, token_ids: list[int], begun: float) -> None:
    """Of a round that began then."""
    now = begun + PERIOD + DELAY
    session.commit(Commitment(len(session.line), token_ids, False, 1000.0 * PERIOD, 0.05, begun * 1000.0), now)


def draft(session: DraftSession, num_levels: int) -> None:
    for _ in range(num_levels):
        assert session.best() is not None
        session.expand(session.take(), [1], [3.0])


def sent(session: DraftSession, now: float) -> int:
    """How many nodes are sent, if a level follows and nobody else has anything to say."""
    window = session.take_window(0.0, now) if due([session.window_worth(now, LEVEL)]) else None
    return len(window or ())


def test_the_first_guess_after_a_miss_is_never_held_back() -> None:
    session, now = in_rhythm()
    draft(session, 1)
    assert not sent(session, now + 8e-3)
    commit(session, [5], now - DELAY)
    now += PERIOD
    draft(session, 1)
    assert sent(session, now) == 1
    draft(session, 1)
    assert sent(session, now + LEVEL) == 1, "it may wait for the second one, too"
    draft(session, 1)
    assert not sent(session, now + 8e-3)


def test_what_a_commit_leaves_unsent_goes_at_once_if_the_verifier_has_nothing_else() -> None:
    session, now = in_rhythm()
    draft(session, 2)
    assert not sent(session, now + 8e-3)
    commit(session, [1], now - DELAY)
    assert sent(session, now + PERIOD) == 2


def test_while_no_round_can_begin_nodes_are_gathered_and_just_before_one_begins_they_go() -> None:
    session, heard = in_rhythm()
    due_at = heard - DELAY + PERIOD
    sizes: dict[float, int] = {}
    draft(session, 3)
    for num_levels in range(6, 25):
        now = heard + num_levels * LEVEL
        draft(session, 1)
        if size := sent(session, now):
            sizes[(now - due_at) / LEVEL] = size
    assert next(iter(sizes.values())) > 4
    assert all(size > 1 for at, size in sizes.items() if at < -5.5), "far from it more than a level"
    assert sizes[min(sizes, key=abs)] == 1, "near it level after level"


def test_who_has_nothing_more_to_draft_sends_the_rest() -> None:
    session, now = in_rhythm()
    assert session.window_worth(now, math.inf) == 0.0
    draft(session, 1)
    assert session.window_worth(now + 8e-3, LEVEL) < WINDOW_SECONDS
    assert session.window_worth(now + 8e-3, math.inf) == math.inf


def test_a_message_is_worth_its_price_to_all_together() -> None:
    assert due([]) == due([0.9 * MESSAGE_SECONDS]) == []
    assert due([1.1 * MESSAGE_SECONDS]) == [0]
    assert due([math.inf, 0.0]) == [0]


def test_all_sessions_wait_for_the_handling_of_a_message_and_all_have_a_say_in_it() -> None:
    assert due([1.9 * MESSAGE_SECONDS, 0.0]) == []
    assert due([1.1 * MESSAGE_SECONDS, MESSAGE_SECONDS]) == [0, 1]
    assert due([4.0 * MESSAGE_SECONDS, 2.9 * WINDOW_SECONDS, 3.1 * WINDOW_SECONDS]) == [0, 2]
    assert due([90.0 * WINDOW_SECONDS] * 100) == [], "none of them is worth a window's handling"


def test_levels_follow_until_something_is_due() -> None:
    nothing, something = [0.0, 0.0], [1.1 * MESSAGE_SECONDS, MESSAGE_SECONDS]
    assert num_levels_held([something], 16) == 1
    assert num_levels_held([*[nothing] * 7, something], 16) == 8
    assert num_levels_held(repeat(nothing), 16) == 16
    assert num_levels_held(repeat(nothing), 1) == 1


def test_what_levels_will_be_worth_is_told_beforehand() -> None:
    session, now = in_rhythm()
    now += 12e-3
    draft(session, 1)
    worths = session.window_worths(now, LEVEL, 1)
    for _ in range(4):
        foreseen = next(worths)
        now += LEVEL
        draft(session, 1)
        assert 0.5 * foreseen < session.window_worth(now, LEVEL) <= foreseen


def test_rounds_that_scatter_are_met_by_more_windows() -> None:
    session, now = in_rhythm()
    draft(session, 1)
    steady = session.window_worth(now + 10e-3, LEVEL)
    begun = now - DELAY
    for index in range(8):
        commit(session, [1], begun)
        draft(session, 1)
        session.take_window(0.0, begun)
        begun += PERIOD * (1.4 if index % 2 else 0.6)
    draft(session, 1)
    assert session.window_worth(begun + DELAY + 10e-3, LEVEL) > 10.0 * steady


@pytest.mark.parametrize("cutoff_ms", [0.0, math.nan, -1.0, 1e12])
def test_a_commit_without_a_cutoff_that_can_be_leaves_every_moment_to_matter(cutoff_ms: float) -> None:
    session, _ = in_rhythm(1)
    session.commit(Commitment(len(session.line), [1], False, 1000.0 * PERIOD, 0.05, cutoff_ms), 0.2)
    draft(session, 2)
    session.take_window(0.0, 0.2)
    draft(session, 1)
    assert sent(session, 0.2) == 1


def is_due(session: DraftSession, seconds: float) -> bool:
    """Whether a window goes at 10.0, if it can be sent again so much later."""
    return bool(due([session.window_worth(10.0, seconds)]))


def test_a_window_goes_out_at_once_while_it_promises_something() -> None:
    """Of a session whose rhythm is not known yet."""
    session = opened()
    session.commit(Commitment(3, [5], True, verify_ms=1000.0))
    assert not is_due(session, math.inf)
    session.expand(session.take(), [1], [0.05])
    assert is_due(session, 1.0)
    session.take_window(0.0, now=10.0)
    for _ in range(12):
        session.expand(session.take(), [1], [0.05])
        if is_due(session, 1.0):
            session.take_window(0.0, now=10.0)
    session.expand(session.take(), [1], [0.05])
    assert not is_due(session, 1.0)
    assert is_due(session, math.inf)


def test_what_a_commit_has_made_likely_goes_out_at_once() -> None:
    session = opened()
    session.commit(Commitment(3, [5], True, verify_ms=1000.0))
    for _ in range(5):
        session.expand(session.take(), [1], [0.05])
    session.take_window(0.0, now=10.0)
    session.expand(session.take(), [1], [0.05])
    assert not is_due(session, 1.0)
    session.commit(Commitment(4, [1, 1, 1, 1, 1], False, verify_ms=1000.0))
    assert is_due(session, 1.0)
