"""A verify session whose client predicts the text: what that adds to its rounds, with drafts and without."""

from __future__ import annotations

import pytest

from outrider.core.estimate.confidence import prediction_bin
from outrider.core.protocol.messages import DraftWindow
from outrider.core.verify.draft_wait import AT_ONCE
from outrider.core.verify.estimates import VerifyEstimates
from tests.core.rounds import chain_window, choices, choose, slow_verifier, verify_session

PREDICTION = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]


def test_a_right_prediction_is_confirmed_many_tokens_at_a_time() -> None:
    session = verify_session(prediction=PREDICTION)
    nodes = choose(session)
    assert [node.token_id for node in nodes] == PREDICTION[:8]
    decision = session.decide(nodes, PREDICTION[:9])
    assert (decision.token_ids, decision.bonus) == (PREDICTION[:9], True)
    assert (decision.num_prediction, decision.num_accepted_prediction, decision.num_prompt_lookup) == (8, 8, 0)
    assert [node.token_id for node in choose(session)] == PREDICTION[9:17]


def test_the_target_alone_decides_whatever_is_predicted() -> None:
    session = verify_session(prediction=PREDICTION)
    nodes = choose(session)
    decision = session.decide(nodes, [1, 2, 50, *[0] * 6])
    assert (decision.token_ids, decision.num_prediction, decision.num_accepted_prediction) == ([1, 2, 50], 8, 2)
    assert session.line.token_ids == [7, 8, 9, 1, 2, 50]
    # A word in another's place: the text goes on behind it, with less trust.
    session.decide([], [4])
    assert [node.token_id for node in choose(session)][:3] == [5, 6, 7]


def test_a_prediction_lasts_as_long_as_the_line_may_be() -> None:
    session = verify_session(prediction=PREDICTION, max_length=6)
    assert [node.token_id for node in choose(session)] == [1, 2]
    assert choose(verify_session(prediction=PREDICTION, max_draft_tokens=0)) == []
    assert [node.token_id for node in choose(verify_session(prediction=PREDICTION[:2]))] == [1, 2]


def test_where_drafts_say_otherwise_both_are_scored() -> None:
    session = verify_session(prediction=PREDICTION)
    session.graft(chain_window(30, 31))
    nodes = choose(session)
    paths = choices(session, nodes, {})
    assert len(paths) == 9
    assert {node.token_id for node in nodes if node.parent is session.tree.root} == {1, 30}
    decision = session.decide(nodes, choices(session, nodes, {(): 1, (1,): 2, (1, 2): 60}))
    assert (decision.token_ids, decision.num_accepted, decision.num_accepted_prediction) == ([1, 2, 60], 2, 2)
    assert decision.num_prediction == 6


@pytest.mark.parametrize(("log_prob", "num_prediction"), [(-3.0, 8), (-0.001, 6)])
def test_where_drafts_say_the_same_the_likelier_node_is_scored_and_the_path_goes_on(
    log_prob: float, num_prediction: int
) -> None:
    session = verify_session(prediction=PREDICTION)
    session.graft(chain_window(1, 2, log_prob=log_prob))
    nodes = choose(session)
    assert [node.token_id for node in nodes] == PREDICTION[:8]
    decision = session.decide(nodes, PREDICTION[:9])
    assert (decision.token_ids, decision.num_prediction) == (PREDICTION[:9], num_prediction)


def test_drafts_below_the_predicted_token_stay_good() -> None:
    session = verify_session(prediction=PREDICTION[:1])
    session.graft(chain_window(1, 50, 51, log_prob=-3.0))
    session.decide(choose(session), [1, 50])
    assert [node.token_id for node in session.tree.live_nodes()] == [51]


def test_looked_up_and_predicted_guesses_are_told_apart() -> None:
    loop = [1, 2, 3, 4, 5] * 4
    session = verify_session(line=loop, ngrams=True, prediction=[1, 2, 60, 61])
    nodes = choose(session)
    paths = {(): 1, (1,): 2, (1, 2): 60, (1, 2, 60): 61, (1, 2, 60, 61): 70}
    decision = session.decide(nodes, choices(session, nodes, paths))
    assert decision.token_ids == [1, 2, 60, 61, 70]
    assert decision.num_accepted_prediction >= 2
    assert decision.num_accepted_prediction + decision.num_accepted_prompt_lookup == 4
    assert decision.num_prediction + decision.num_prompt_lookup == len(nodes)


def test_a_useless_prediction_is_soon_not_scored_any_more() -> None:
    session = verify_session(prediction=[*range(30, 50)] * 3)
    num_scored = 0
    for token_id in range(1, 30):
        nodes = choose(session)
        num_scored += len(nodes)
        session.decide(nodes, [token_id] + [0] * len(nodes))
    assert not choose(session)
    assert num_scored <= 20  # 8 of them in the first round


def test_what_a_prediction_is_worth_is_learned_for_the_sessions_after_it() -> None:
    estimates = VerifyEstimates()
    calibration, _ = estimates.of(greedy=True)
    begun, before = prediction_bin(3 / 4), calibration.log_acceptance(prediction_bin(3 / 4))
    for _ in range(20):
        session = verify_session(prediction=PREDICTION, estimates=estimates)
        session.decide([], [60])
    assert calibration.log_acceptance(begun) < before - 1


def test_no_round_waits_for_drafts_while_the_prediction_carries() -> None:
    waiting = slow_verifier(coverage=0.6, first_draft=0.1)
    assert waiting.wait(10.0).longest > 0
    predicted = slow_verifier(coverage=0.6, first_draft=0.1, prediction=[1, *PREDICTION])
    assert predicted.wait(10.0) == AT_ONCE


def test_a_window_that_comes_between_changes_no_guess_of_the_prediction() -> None:
    session = verify_session(prediction=PREDICTION)
    before = [node.token_id for node in choose(session)]
    session.graft(DraftWindow(2, 1, [0], [40], [-9.0]))
    assert [node.token_id for node in choose(session)] == before
