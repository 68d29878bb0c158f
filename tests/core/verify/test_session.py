"""The verifier's session: what it scores, and what the target's choices decide."""

from __future__ import annotations

import pytest

from outrider.core.estimate.confidence import claim_bin
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import DraftWindow, FinishReason
from outrider.core.verify.draft_wait import AT_ONCE
from outrider.core.verify.estimates import VerifyEstimates
from tests.core.rounds import EOS, STOP, chain_window, choices, choose, slow_verifier, verify_session


def test_with_no_drafts_a_round_is_plain_decoding() -> None:
    session = verify_session()
    assert choose(session) == []
    assert session.decide([], [5]) == (3, [5], 0, [0], False, None, 0, 0, 0, 0)
    assert session.line.token_ids == [7, 8, 9, 5]
    assert session.tree.root.token_id == 5


def test_a_chain_accepted_to_its_end_earns_a_bonus() -> None:
    session = verify_session()
    session.graft(chain_window(1, 2))
    nodes = choose(session)
    assert session.decide(nodes, [1, 2, 3]) == (3, [1, 2, 3], 2, [0, 1, 2], True, None, 0, 0, 0, 0)
    assert session.tree.num_live == 0


def test_a_rejection_is_followed_by_the_recovered_token() -> None:
    session = verify_session()
    session.graft(chain_window(1, 2, 3))
    nodes = choose(session)
    assert session.decide(nodes, [1, 5, 3, 4]) == (3, [1, 5], 1, [0, 1], False, None, 0, 0, 0, 0)
    assert session.line.token_ids == [7, 8, 9, 1, 5]


def test_a_rejection_at_once_accepts_nothing() -> None:
    session = verify_session()
    session.graft(chain_window(1, 2))
    assert session.decide(choose(session), [5, 2, 3]) == (3, [5], 0, [0], False, None, 0, 0, 0, 0)


def test_one_branch_of_a_tree_is_accepted_and_its_rows_are_named() -> None:
    session = verify_session()
    # 1 -> 3, 2 -> (4, 5): the branch 2, 5 is the target's.
    session.graft(DraftWindow(2, 1, [0, 0, 1, 2, 2], [1, 2, 3, 4, 5], [-0.1, -0.2, -0.1, -0.3, -0.2]))
    nodes = choose(session)
    decision = session.decide(nodes, choices(session, nodes, {(): 2, (2,): 5, (2, 5): 6}))
    assert (decision.token_ids, decision.num_accepted, decision.bonus) == ([2, 5, 6], 2, True)
    assert [nodes[row - 1].token_id for row in decision.rows[1:]] == [2, 5]


def test_a_next_token_that_was_drafted_but_not_scored_keeps_its_subtree() -> None:
    session = verify_session(max_draft_tokens=1)
    session.graft(chain_window(1, 2, 3))
    nodes = choose(session)
    assert [node.token_id for node in nodes] == [1]
    assert session.decide(nodes, [1, 2]) == (3, [1, 2], 1, [0, 1], True, None, 0, 0, 0, 0)
    assert [node.token_id for node in choose(session)] == [3]


def test_drafts_that_arrive_during_the_step_are_kept_for_the_next() -> None:
    session = verify_session()
    session.graft(chain_window(1))
    nodes = choose(session)
    session.graft(DraftWindow(2, 2, [1, 2], [2, 3], [-0.1, -0.1]))
    decision = session.decide(nodes, [1, 2])
    assert (decision.token_ids, decision.num_accepted, decision.bonus) == ([1, 2], 1, True)
    assert [node.token_id for node in choose(session)] == [3]


def test_late_drafts_are_absorbed() -> None:
    session = verify_session()
    session.decide([], [1])
    added, num_known, num_stale, _ = session.graft(chain_window(1, 2))
    assert ([node.token_id for node in added], num_known, num_stale) == ([2], 1, 0)


@pytest.mark.parametrize(("token_id", "reason"), [(EOS, FinishReason.EOS), (STOP, FinishReason.STOP_TOKEN), (5, None)])
def test_an_ending_token_ends_the_session_as_a_next_token(token_id: int, reason: FinishReason | None) -> None:
    assert verify_session().decide([], [token_id]) == (3, [token_id], 0, [0], False, reason, 0, 0, 0, 0)


@pytest.mark.parametrize(("token_id", "reason"), [(EOS, FinishReason.EOS), (STOP, FinishReason.STOP_TOKEN)])
def test_nothing_follows_an_accepted_token_that_ends_the_session(token_id: int, reason: FinishReason) -> None:
    session = verify_session()
    session.graft(chain_window(1, token_id, 3))
    decision = session.decide(choose(session), [1, token_id, 3, 4])
    assert decision == (3, [1, token_id], 2, [0, 1], False, reason, 0, 0, 0, 0)
    assert session.line.token_ids == [7, 8, 9, 1, token_id]


def test_end_of_text_can_be_ignored() -> None:
    session = verify_session(ignore_eos=True)
    assert session.decide([], [EOS]).finish_reason is None


def test_the_line_ends_at_its_length() -> None:
    session = verify_session(max_length=5)
    assert session.decide([], [1]).finish_reason is None
    assert session.decide([], [2]).finish_reason is FinishReason.LENGTH


def test_end_of_text_at_the_last_place_is_end_of_text() -> None:
    assert verify_session(max_length=4).decide([], [EOS]).finish_reason is FinishReason.EOS


def test_the_last_place_is_not_scored_and_comes_as_a_next_token() -> None:
    session = verify_session(max_length=5)
    session.graft(chain_window(1, 2, 3))
    nodes = choose(session)
    assert [node.token_id for node in nodes] == [1]
    assert session.decide(nodes, [1, 2]) == (3, [1, 2], 1, [0, 1], True, FinishReason.LENGTH, 0, 0, 0, 0)


def test_drafts_beyond_the_rounds_bound_wait() -> None:
    session = verify_session(max_draft_tokens=2)
    session.graft(chain_window(1, 2, 3, 4))
    assert [node.token_id for node in choose(session)] == [1, 2]
    assert choose(verify_session(max_draft_tokens=0)) == []


def test_a_breach_of_the_protocol_is_reported() -> None:
    with pytest.raises(ProtocolViolationError, match="out of range"):
        verify_session().graft(chain_window(100))


def test_the_first_round_waits_for_nothing() -> None:
    assert verify_session().wait(0.0) == AT_ONCE


def test_it_waits_for_quick_drafts_and_goes_when_they_have_come() -> None:
    session = slow_verifier(coverage=0.6, first_draft=0.1)
    assert 0.1 < session.wait(10.0).longest < 0.3
    session.graft(chain_window(2, 3, 4, 5, 6, base=3, log_prob=-0.3), now=10.1)
    assert session.wait(10.1) == AT_ONCE


def test_it_does_not_wait_for_slow_ones() -> None:
    assert slow_verifier(coverage=0.6, first_draft=0.9).wait(10.0) == AT_ONCE


def test_a_wait_that_nothing_came_of_makes_the_next_one_less_likely() -> None:
    session = slow_verifier(coverage=0.6, first_draft=0.1)
    now = 10.0
    num_waits = 0
    while (wait := session.wait(now).longest) > 0.0 and num_waits < 20:
        num_waits += 1
        session.begin([], now + wait)
        now += wait + 1.0
        session.decide([], [5], now=now)
    assert 0 < num_waits < 10


def test_guesses_teach_what_guesses_are_worth_even_if_they_come_too_late() -> None:
    estimates = VerifyEstimates()
    session = verify_session(estimates=estimates)
    calibration, _ = estimates.of(greedy=True)
    before = calibration.log_acceptance(claim_bin(-0.1))
    session.decide([], [1])
    session.graft(chain_window(1))
    assert calibration.log_acceptance(claim_bin(-0.1)) > before


def test_scored_guesses_teach_the_session_and_all_that_follow() -> None:
    estimates = VerifyEstimates()
    session = verify_session(estimates=estimates)
    before = estimates.of(greedy=True)[0].log_acceptance(claim_bin(-0.1))
    session.graft(chain_window(1))
    session.decide(choose(session), [5, 6])
    assert estimates.of(greedy=True)[0].log_acceptance(claim_bin(-0.1)) < before
    assert estimates.of(greedy=False)[0].log_acceptance(claim_bin(-0.1)) == before
