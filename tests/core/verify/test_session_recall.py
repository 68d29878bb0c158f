"""A verify session that recalls: what an answer said the next may repeat, and the target alone decides."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.core.estimate.confidence import recall_bin
from outrider.core.propose.recent_answers import RecentAnswers, RecentAnswersByTenant
from outrider.core.schedule.verify_step import Decided
from outrider.core.verify.estimates import VerifyEstimates
from tests.core.rounds import chain_window, choose, verify_session
from tests.core.schedule.driven import TOKEN, VerifierByHand

ANSWER = [11, 12, 13, 14, 15, 16, 17, 18]


def recent() -> RecentAnswers:
    answers = RecentAnswers()
    answers.add(ANSWER)
    return answers


@pytest.mark.parametrize("ngrams", [False, True])
def test_a_bare_session_scores_and_accepts_what_an_answer_said(ngrams: bool) -> None:
    session = verify_session(line=[7, *ANSWER[:4]], recent=recent(), ngrams=ngrams)
    nodes = choose(session)
    assert [node.token_id for node in nodes] == [15, 16, 17, 18]
    decision = session.decide(nodes, [15, 16, 9, 0, 0])
    assert (decision.token_ids, decision.num_prompt_lookup, decision.num_accepted_prompt_lookup) == ([15, 16, 9], 4, 2)
    assert [node.token_id for node in choose(session)] == [18]


def test_it_stands_below_what_was_drafted() -> None:
    session = verify_session(line=[7, *ANSWER[:4]], recent=recent())
    session.graft(chain_window(15, base=4))
    assert [node.token_id for node in choose(session)] == [15, 16, 17, 18]
    session.graft(chain_window(9, first_id=2, base=4))
    assert {node.token_id for node in choose(session)} >= {15, 9}


def test_what_line_and_answer_both_say_is_one_node_with_the_better_chance() -> None:
    estimates = VerifyEstimates()
    line = [15, 9, *ANSWER[:4], 15, 8, *ANSWER[:4]]
    session = verify_session(line=line, recent=recent(), ngrams=True, estimates=estimates)
    first = choose(session)[0]
    assert first.token_id == 15
    calibration, _ = estimates.of(greedy=True)
    assert first.log_prob >= calibration.log_acceptance(recall_bin(5 / 6))
    assert [node.token_id for node in choose(session)].count(15) == 1


def test_wrong_ones_teach_that_they_are_wrong() -> None:
    estimates = VerifyEstimates()
    session = verify_session(line=[7, *ANSWER[:4]], recent=recent(), estimates=estimates)
    calibration, _ = estimates.of(greedy=True)
    before = calibration.log_acceptance(recall_bin(5 / 6))
    nodes = choose(session)
    session.decide(nodes, [9] * (len(nodes) + 1))
    assert calibration.log_acceptance(recall_bin(5 / 6)) < before


def rounds(verifier: VerifierByHand, key: str, **more: Any) -> int:
    """How many the session needs, whose target says TOKEN all along."""
    verifier.open(key, num_tokens=24, **more)
    verifier.scheduler.end_drafts(key)
    verifier.run()
    verdicts = [decided.verdict for decided in verifier.told(key, Decided)]
    assert [token_id for verdict in verdicts for token_id in verdict.token_ids] == [TOKEN] * 24
    return len(verdicts)


def test_an_answer_saves_rounds_to_the_same_tenant_alone() -> None:
    verifier = VerifierByHand(recent=RecentAnswersByTenant(has_common=False))
    first = rounds(verifier, "1", cache_salt="ann")
    assert first == 24
    assert rounds(verifier, "2", cache_salt="ben") == first
    assert rounds(verifier, "3") == rounds(verifier, "4") == first
    assert rounds(verifier, "5", cache_salt="ann") < first


def test_where_nobody_has_a_salt_answers_are_shared_if_that_is_allowed() -> None:
    verifier = VerifierByHand(recent=RecentAnswersByTenant(has_common=True))
    first = rounds(verifier, "1")
    assert rounds(verifier, "2", cache_salt="ann") == first
    assert rounds(verifier, "3") < first


def test_what_was_answered_before_a_session_was_given_up_is_recalled_too() -> None:
    verifier = VerifierByHand(recent=RecentAnswersByTenant(has_common=True))
    verifier.open("1", num_tokens=50)
    verifier.scheduler.end_drafts("1")
    for _ in range(12):
        verifier.succeed(verifier.plan())
    verifier.scheduler.close("1")
    assert rounds(verifier, "2") < 24
