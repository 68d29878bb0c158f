"""The coordinator's session: each event and the commands that follow from it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from outrider.core.coordinate.drafter_state import DrafterState
from outrider.core.coordinate.session import Emit, OpenDrafter, Session, VerdictOutcome
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import (
    Commitment,
    DraftWindow,
    EndDrafts,
    FinishReason,
    TokenLogprobs,
    TokenOrigin,
    Verdict,
)
from outrider.core.protocol.validation import RUN_AHEAD_MAX

ACCEPTED, RECOVERED, BONUS, TARGET = (
    TokenOrigin.ACCEPTED,
    TokenOrigin.RECOVERED,
    TokenOrigin.BONUS,
    TokenOrigin.TARGET,
)
DRAFTS = DraftWindow(2, 1, [0, 1, 0], [1, 2, 3], [-0.1, -0.2, -0.3], 4.0)


def new_session(*, drafting: bool = True, max_run_ahead: int = 8) -> Session:
    """A session after the prompt [7, 8, 9]."""
    return Session([7, 8, 9], vocab_size=100, max_run_ahead=max_run_ahead, drafting=drafting)


def verdict(position: int, *token_ids: int, accepted: int = 0, drafted: int = 0, bonus: bool = False) -> Verdict:
    return Verdict(
        position=position,
        token_ids=token_ids,
        num_accepted=accepted,
        num_draft_tokens=drafted,
        bonus=bonus,
        num_stale_nodes=1,
        verify_ms=5.0,
        wait_ms=2.0,
    )


def only_emit(outcome: VerdictOutcome | None) -> Emit:
    assert outcome is not None
    return outcome.emit


def test_drafts_are_relayed_under_the_coordinators_own_ids() -> None:
    session = new_session()
    first = DraftWindow(2, 1, [0, 0], [1, 1], [-0.1, -0.1], 1.0)
    assert session.on_drafted(first) == DraftWindow(2, 1, [0], [1], [-0.1], 1.0)
    # The drafter's id 2 names the node that went on as id 1.
    second = DraftWindow(2, 3, [2], [5], [-0.2], 2.0)
    assert session.on_drafted(second) == DraftWindow(2, 2, [1], [5], [-0.2], 2.0)
    assert session.statistics.num_drafted_nodes == 3
    assert session.statistics.draft_ms == 3.0


def test_a_repeated_window_is_not_relayed_and_not_counted() -> None:
    session = new_session()
    assert isinstance(session.on_drafted(DRAFTS), DraftWindow)
    assert session.on_drafted(DRAFTS) is None
    assert session.statistics.num_drafted_nodes == 3
    assert session.statistics.draft_ms == 4.0


def test_stale_drafts_are_counted_and_not_relayed() -> None:
    session = new_session()
    session.on_verdict(verdict(3, 6))
    num_stale_nodes = session.statistics.num_stale_nodes
    assert session.on_drafted(DRAFTS) is None
    assert session.statistics.num_stale_nodes == num_stale_nodes + 3


def test_drafts_absorbed_on_the_way_are_relayed_from_where_they_are_news() -> None:
    session = new_session()
    session.on_verdict(verdict(3, 1))
    assert session.on_drafted(DRAFTS) == DraftWindow(3, 1, [0], [2], [-0.2], 4.0)


def test_the_clock_of_the_drafter_goes_to_the_verifier_and_comes_back() -> None:
    session = new_session()
    relayed = session.on_drafted(replace(DRAFTS, sent_ms=12.5))
    assert isinstance(relayed, DraftWindow)
    assert relayed.sent_ms == 12.5
    outcome = session.on_verdict(replace(verdict(3, 1, 2, accepted=2, drafted=3), cutoff_ms=14.5))
    assert outcome is not None
    assert outcome.commitment is not None
    assert outcome.commitment.cutoff_ms == 14.5


def test_a_verdict_along_the_drafts_is_a_commit() -> None:
    session = new_session()
    session.on_drafted(DRAFTS)
    outcome = session.on_verdict(verdict(3, 1, 2, accepted=2, drafted=3))
    assert outcome is not None
    assert outcome.commitment == Commitment(3, (1, 2), rollback=False, verify_ms=5.0)
    emit = outcome.emit
    assert emit == Emit(
        3, (1, 2), [ACCEPTED, ACCEPTED], rolled_back=False, num_draft_tokens=3, num_accepted=2, logprobs=()
    )
    assert session.line.token_ids == [7, 8, 9, 1, 2]


def test_a_verdict_beside_the_drafts_is_a_rollback() -> None:
    session = new_session()
    session.on_drafted(DRAFTS)
    outcome = session.on_verdict(verdict(3, 1, 6, accepted=1, drafted=3))
    assert outcome is not None
    assert outcome.commitment == Commitment(3, (1, 6), rollback=True, verify_ms=5.0)
    emit = outcome.emit
    assert emit.rolled_back
    assert session.statistics.num_rollbacks == 1
    assert session.tree.num_live == 0


@pytest.mark.parametrize(
    ("decided", "origins"),
    [
        (verdict(3, 1), [TARGET]),
        (verdict(3, 1, drafted=2), [RECOVERED]),
        (verdict(3, 1, 2, accepted=1, drafted=2), [ACCEPTED, RECOVERED]),
        (verdict(3, 1, 2, accepted=1, drafted=1, bonus=True), [ACCEPTED, BONUS]),
        (verdict(3, 1, 2, accepted=2, drafted=2), [ACCEPTED, ACCEPTED]),
    ],
)
def test_every_token_tells_where_it_came_from(decided: Verdict, origins: list[TokenOrigin]) -> None:
    assert only_emit(new_session().on_verdict(decided)).origins == origins


def test_without_a_drafter_verdicts_go_to_the_user_alone() -> None:
    session = new_session(drafting=False)
    assert session.drafter is DrafterState.NONE
    assert session.on_drafted(DRAFTS) is None
    assert session.on_drafter_lost("what drafter?") is None
    outcome = session.on_verdict(verdict(3, 1))
    assert outcome is not None
    assert outcome.commitment is None
    assert not outcome.emit.rolled_back
    assert session.statistics.num_rollbacks == 0


def test_a_verdict_seen_before_changes_nothing() -> None:
    session = new_session()
    session.on_verdict(verdict(3, 1, 2, accepted=1, drafted=1))
    before = replace(session.statistics)
    assert session.on_verdict(verdict(3, 1, 2, accepted=1, drafted=1)) is None
    assert session.on_verdict(verdict(3, 1)) is None
    assert session.statistics == before


def test_of_a_verdict_that_overlaps_the_line_only_the_news_counts() -> None:
    session = new_session()
    session.on_verdict(verdict(3, 1))
    overlapping = verdict(3, 1, 2, 4, accepted=2, drafted=2, bonus=True)
    alternatives = tuple(TokenLogprobs(-float(token_id), (), ()) for token_id in (1, 2, 4))
    emit = only_emit(session.on_verdict(replace(overlapping, logprobs=alternatives)))
    assert (emit.position, emit.token_ids, emit.origins) == (4, (2, 4), [ACCEPTED, BONUS])
    assert emit.num_accepted == 1
    assert emit.logprobs == alternatives[1:]
    assert session.statistics.num_committed_tokens == 3
    assert session.statistics.num_accepted_tokens == 1


@pytest.mark.parametrize(
    ("decided", "message"),
    [
        (verdict(4, 1), "leaves a gap"),
        (verdict(2, 5, 1, accepted=1, drafted=1), "contradicts"),
        (verdict(3), "a verdict commits"),
        (verdict(3, 1, accepted=2, drafted=2), "a verdict commits"),
        (verdict(3, 1, accepted=-1, drafted=2), "a verdict commits"),
        (verdict(3, 1, accepted=1), "a verdict commits"),
        (verdict(3, 1, 2, accepted=0, drafted=2), "a verdict commits"),
    ],
)
def test_an_impossible_verdict_is_refused_and_changes_nothing(decided: Verdict, message: str) -> None:
    session = new_session()
    session.on_drafted(DRAFTS)
    before = replace(session.statistics)
    with pytest.raises(ProtocolViolationError, match=message):
        session.on_verdict(decided)
    assert session.line.token_ids == [7, 8, 9]
    assert session.tree.num_live == 3
    assert session.statistics == before


def test_a_lost_drafter_ends_the_drafts_once() -> None:
    session = new_session()
    assert session.on_drafter_lost("the connection broke") == EndDrafts()
    assert session.on_drafter_lost("again") is None
    assert session.drafter is DrafterState.LOST
    assert session.mode_reason == "the connection broke"
    assert session.on_drafted(DRAFTS) is None
    outcome = session.on_verdict(verdict(3, 1))
    assert outcome is not None
    assert outcome.commitment is None
    assert not outcome.emit.rolled_back


@pytest.mark.parametrize(
    "nonsense",
    [
        replace(DRAFTS, token_ids=[1, 2, 100]),
        replace(DRAFTS, parent_ids=[0, 1, 9]),
        replace(DRAFTS, log_probs=[-0.1, -0.2, math.nan]),
        replace(DRAFTS, base=3),
        replace(DRAFTS, first_id=2),
        replace(DRAFTS, log_probs=[]),
        replace(DRAFTS, draft_ms=math.nan),
    ],
)
def test_a_drafter_that_breaks_the_protocol_is_lost_and_nothing_else(nonsense: DraftWindow) -> None:
    session = new_session()
    assert session.on_drafted(nonsense) == EndDrafts()
    assert session.drafter is DrafterState.LOST
    assert "broke the protocol" in session.mode_reason
    assert session.statistics.num_drafted_nodes == 0
    assert only_emit(session.on_verdict(verdict(3, 1))).token_ids == (1,)


def test_a_drafter_that_exceeds_its_credit_is_lost() -> None:
    session = new_session(max_run_ahead=2)
    assert session.on_drafted(DRAFTS) == EndDrafts()
    assert "credit of 2" in session.mode_reason


def pooled_session(*, max_run_ahead: int = 8, num_spare_drafters: int = 2) -> Session:
    return Session(
        [7, 8, 9],
        vocab_size=100,
        max_run_ahead=max_run_ahead,
        drafting=True,
        num_spare_drafters=num_spare_drafters,
    )


def test_a_lost_drafter_is_replaced_while_there_are_spare_ones() -> None:
    session = pooled_session()
    assert session.on_drafter_lost("one") == OpenDrafter(8, "one")
    assert isinstance(session.on_drafted(DRAFTS), DraftWindow), "the next one counts its ids from 1 again"
    assert session.on_drafter_lost("two") == OpenDrafter(8, "two")
    assert session.drafter is DrafterState.REPLACED
    assert session.mode_reason == ""
    assert session.on_drafter_lost("three") == EndDrafts()
    assert session.drafter is DrafterState.LOST
    assert session.mode_reason == "three"


def test_drafters_that_drain_cost_no_spare_one() -> None:
    session = pooled_session(num_spare_drafters=0)
    for _ in range(3):
        assert session.on_drafter_handed_over("it is about to stop") == OpenDrafter(8, "it is about to stop")
        assert session.drafter is DrafterState.REPLACED
    assert session.on_drafter_lost("gone") == EndDrafts()


def test_guesses_of_a_lost_drafter_stay_and_are_not_relayed_twice() -> None:
    session = pooled_session()
    session.on_drafted(DRAFTS)
    session.on_drafter_lost("gone")
    assert session.tree.num_live == 3
    more = DraftWindow(2, 1, [0, 1, 2], [1, 2, 4], [-0.1, -0.2, -0.3])
    assert session.on_drafted(more) == DraftWindow(2, 4, [2], [4], [-0.3])


def test_a_new_drafter_may_have_its_credit_beside_what_is_live() -> None:
    session = pooled_session(max_run_ahead=3)
    session.on_drafted(DRAFTS)
    assert session.on_drafter_lost("gone") == OpenDrafter(3, "gone")
    others = replace(DRAFTS, token_ids=[11, 12, 13])
    assert isinstance(session.on_drafted(others), DraftWindow)
    one_more = DraftWindow(2, 4, [0], [14], [-0.1])
    opening = session.on_drafted(one_more)
    assert isinstance(opening, OpenDrafter)
    assert "7 live draft nodes exceed" in opening.reason


def test_no_more_is_granted_than_the_verifier_bears() -> None:
    session = pooled_session(max_run_ahead=200)
    chain = DraftWindow(2, 1, list(range(200)), [1] * 200, [-0.1] * 200)
    session.on_drafted(chain)
    assert session.on_drafter_lost("gone") == OpenDrafter(RUN_AHEAD_MAX - 200, "gone")
    other = DraftWindow(2, 1, list(range(56)), [2] * 56, [-0.1] * 56)
    session.on_drafted(other)
    assert session.on_drafter_lost("gone too") == EndDrafts()


def test_what_a_broken_window_left_is_taken_out() -> None:
    session = pooled_session(max_run_ahead=2)
    session.on_drafted(DraftWindow(2, 1, [0], [1], [-0.1]))
    too_many = DraftWindow(2, 2, [1, 2, 3], [2, 3, 4], [-0.1] * 3)
    opening = session.on_drafted(too_many)
    assert isinstance(opening, OpenDrafter)
    assert [node.token_id for node in session.tree.live_nodes()] == [1]
    assert session.tree.num_live == 1
    again = DraftWindow(2, 1, [0, 1], [1, 2], [-0.1] * 2)
    assert session.on_drafted(again) == DraftWindow(2, 2, [1], [2], [-0.1])


def test_a_drafter_that_refuses_was_never_there() -> None:
    session = pooled_session(num_spare_drafters=1)
    assert session.on_drafter_refused("full") == OpenDrafter(8, "full")
    assert session.on_drafter_refused("full too") == EndDrafts()
    assert session.drafter is DrafterState.MISSED
    assert session.mode_reason == "full too"
    after_a_loss = pooled_session(num_spare_drafters=1)
    after_a_loss.on_drafter_lost("gone")
    after_a_loss.on_drafter_refused("full")
    assert after_a_loss.drafter is DrafterState.LOST


def test_when_there_is_no_drafter_to_be_had_the_verifier_goes_on_alone() -> None:
    session = pooled_session()
    assert session.on_no_drafter("none there") == EndDrafts()
    assert session.on_no_drafter("again") is None
    assert (session.drafter, session.mode_reason) == (DrafterState.MISSED, "none there")
    assert not only_emit(session.on_verdict(verdict(3, 1))).rolled_back


def test_another_verifier_is_told_what_is_live_in_the_order_it_came() -> None:
    session = new_session()
    assert session.on_verifier_changed() is None
    session.on_drafted(DraftWindow(2, 1, [0, 0, 1], [1, 2, 3], [-0.1, -0.2, -0.3], 1.0))
    session.on_verdict(verdict(3, 1))
    session.on_drafted(DraftWindow(2, 4, [3, 1], [4, 5], [-0.4, -0.5], 1.0))
    assert session.on_verifier_changed() == DraftWindow(3, 1, [0, 1, 0], [3, 4, 5], [-0.3, -0.4, -0.5], 0.0)
    assert session.on_drafted(DraftWindow(2, 6, [4], [6], [-0.6])) == DraftWindow(3, 4, [2], [6], [-0.6])


@pytest.mark.parametrize("drafting", [True, False])
def test_the_end_is_final_and_the_drafter_is_heard_no_longer(drafting: bool) -> None:
    session = new_session(drafting=drafting)
    session.on_verdict(verdict(3, 1))
    assert session.hears_drafter == drafting
    session.on_stopped(FinishReason.EOS)
    assert not session.hears_drafter
    session.on_stopped(FinishReason.LENGTH)
    assert session.finish_reason is FinishReason.EOS
    assert session.on_verdict(verdict(4, 2)) is None
    assert session.on_drafted(DRAFTS) is None
    assert session.line.token_ids == [7, 8, 9, 1]


def test_a_stop_string_ends_the_session_and_later_verdicts_are_void() -> None:
    session = new_session()
    session.on_verdict(verdict(3, 1))
    session.on_stopped(FinishReason.STOP_STRING)
    assert session.on_verdict(verdict(4, 2)) is None
    session.on_stopped(FinishReason.EOS)
    assert session.finish_reason is FinishReason.STOP_STRING


def test_a_drafter_whose_stream_ends_after_the_end_was_not_lost() -> None:
    session = new_session()
    session.on_stopped(FinishReason.STOP_STRING)
    assert session.on_drafter_lost("the stream was closed") is None
    assert session.drafter is DrafterState.ACTIVE
    assert session.mode_reason == ""


def test_statistics_add_up() -> None:
    session = new_session()
    session.on_drafted(DRAFTS)
    session.on_verdict(verdict(3, 1, 2, 4, accepted=2, drafted=3, bonus=True))
    session.on_verdict(verdict(6, 5))
    found = session.statistics
    assert (found.num_rounds, found.num_committed_tokens, found.num_rollbacks) == (2, 4, 2)
    assert (found.num_draft_tokens, found.num_accepted_tokens) == (3, 2)
    assert (found.drafted_by_round, found.accepted_by_round) == ([3, 0], [2, 0])
    assert (found.num_drafted_nodes, found.num_stale_nodes) == (3, 2)
    assert (found.verify_ms, found.verify_wait_ms, found.draft_ms) == (10.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("decided", "counts"),
    [
        # 1 was accepted and 5 recovered, which nobody had guessed; 2 had been guessed there.
        (verdict(3, 1, 5, accepted=1, drafted=2), (1, 0, 0, 0)),
        (verdict(3, 1, 2, accepted=1, drafted=1), (1, 1, 0, 0)),
        (verdict(3, 1, 2, accepted=1, drafted=1, bonus=True), (0, 0, 1, 1)),
        (verdict(3, 1, 2, 4, accepted=2, drafted=2, bonus=True), (0, 0, 1, 0)),
        (verdict(3, 3), (0, 0, 0, 0)),
    ],
)
def test_a_next_token_that_had_been_drafted_is_a_hit(decided: Verdict, counts: tuple[int, int, int, int]) -> None:
    session = new_session()
    session.on_drafted(DRAFTS)
    session.on_verdict(decided)
    found = session.statistics
    assert (found.num_rejections, found.num_recovered_token_hits, found.num_bonuses, found.num_bonus_hits) == counts
