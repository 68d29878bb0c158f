"""A verify session that looks things up: what that adds to its rounds, and that it shows nowhere else."""

from __future__ import annotations

import math

import pytest

from outrider.core.estimate.confidence import CLAIM_PROBABILITIES, VERIFY_PROBABILITIES, lookup_bin
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.messages import DraftWindow, FinishReason
from outrider.core.verify.draft_wait import DraftWait, ReadyDrafts, Wait
from outrider.core.verify.estimates import VerifyEstimates
from outrider.core.verify.session import VerifySession
from tests.core.rounds import EOS, chain_window, choices, choose, slow_verifier, verify_session

LOOP = [1, 2, 3, 4, 5] * 4


def test_a_bare_session_scores_and_accepts_what_its_line_repeats() -> None:
    session = verify_session(line=LOOP, ngrams=True)
    nodes = choose(session)
    assert [node.token_id for node in nodes] == [1, 2, 3, 4, 5, 1, 2, 3]
    decision = session.decide(nodes, [1, 2, 3, 4, 5, 1, 2, 3, 4])
    assert decision == (20, [1, 2, 3, 4, 5, 1, 2, 3, 4], 8, list(range(9)), True, None, 8, 8, 0, 0)
    assert session.tree.num_live == 0
    assert [node.token_id for node in choose(session)[:3]] == [5, 1, 2]


def test_the_target_alone_decides_whatever_is_looked_up() -> None:
    session = verify_session(line=LOOP, ngrams=True)
    nodes = choose(session)
    assert session.decide(nodes, [1, 2, 9, *[0] * 6]) == (20, [1, 2, 9], 2, [0, 1, 2], False, None, 8, 2, 0, 0)
    assert session.line.token_ids == [*LOOP, 1, 2, 9]


def test_nothing_follows_a_looked_up_token_that_ends_the_session() -> None:
    session = verify_session(line=[1, EOS, 3] * 6, ngrams=True)
    nodes = choose(session)
    assert [node.token_id for node in nodes[:3]] == [1, EOS, 3]
    decision = session.decide(nodes, [1, EOS, *[3] * 7])
    assert (decision.token_ids, decision.finish_reason) == ([1, EOS], FinishReason.EOS)
    assert decision.num_accepted_prompt_lookup == 2


def test_what_is_looked_up_goes_on_where_the_drafts_end() -> None:
    session = verify_session(line=LOOP, ngrams=True)
    session.graft(chain_window(1, 2, base=19))
    nodes = choose(session)
    assert [node.token_id for node in nodes] == [1, 2, 3, 4, 5, 1, 2, 3]
    decision = session.decide(nodes, [1, 2, 3, 9, *[0] * 5])
    assert (decision.num_accepted, decision.num_prompt_lookup, decision.num_accepted_prompt_lookup) == (3, 6, 1)


def test_the_last_place_of_the_line_is_not_looked_up_either() -> None:
    session = verify_session(line=LOOP, ngrams=True, max_length=23)
    assert [node.token_id for node in choose(session)] == [1, 2]
    assert choose(verify_session(line=LOOP, ngrams=True, max_draft_tokens=0)) == []


def test_what_was_looked_up_teaches_even_if_it_was_not_scored_and_is_gone_after_the_round() -> None:
    # After 7 came 1 three times and 2 once. There is room for one.
    line = [7, 1, 5, 7, 1, 6, 7, 2, 8, 7, 1, 9, 7]
    probabilities = NgramTable(line).probabilities(NgramTable(line).context)
    estimates = VerifyEstimates()
    session = verify_session(line=line, ngrams=True, max_draft_tokens=1, estimates=estimates)
    calibration, _ = estimates.of(greedy=True)
    likely, unlikely = (lookup_bin(probabilities[token_id]) for token_id in (1, 2))
    before = [calibration.log_acceptance(confidence_bin) for confidence_bin in (likely, unlikely)]
    nodes = choose(session)
    assert [node.token_id for node in nodes] == [1]
    decision = session.decide(nodes, [2, 5])
    assert (decision.token_ids, decision.num_prompt_lookup, decision.num_accepted_prompt_lookup) == ([2], 1, 0)
    assert calibration.log_acceptance(likely) < before[0]
    assert calibration.log_acceptance(unlikely) > before[1]
    assert (session.tree.num_live, session.tree.root.children) == (0, {})


def test_choosing_twice_for_a_round_is_choosing_once() -> None:
    # After 7 came four different tokens: none is likely enough for a node below a draft of 7 that is unlikely, too.
    line = [7, 1, 7, 2, 7, 3, 7, 4, 9]
    learned: list[list[float]] = []
    for num_choices in (1, 2):
        estimates = VerifyEstimates()
        session = verify_session(line=line, ngrams=True, estimates=estimates)
        session.graft(chain_window(7, base=8, log_prob=math.log(0.35)))
        nodes = [choose(session) for _ in range(num_choices)][-1]
        assert [node.token_id for node in nodes] == [7]
        session.decide(nodes, choices(session, nodes, {(): 7, (7,): 2}))
        learned.append(
            [
                estimates.of(greedy=True)[0].log_acceptance(confidence_bin)
                for confidence_bin in range(len(VERIFY_PROBABILITIES))
            ]
        )
    assert learned[0] == learned[1]
    assert learned[0][len(CLAIM_PROBABILITIES) :] != [
        math.log(probability) for probability in VERIFY_PROBABILITIES[len(CLAIM_PROBABILITIES) :]
    ]


def test_a_session_finds_out_by_itself_what_its_line_is_worth() -> None:
    estimates = VerifyEstimates()
    session = verify_session(line=LOOP, ngrams=True, estimates=estimates)
    before = [node.path_log_prob for node in choose(session)]
    for confidence_bin in range(len(CLAIM_PROBABILITIES), len(VERIFY_PROBABILITIES)):
        for _ in range(50):
            estimates.of(greedy=True)[0].observe(confidence_bin, False)
    assert [node.path_log_prob for node in choose(session)] == before
    later = verify_session(line=LOOP, ngrams=True, estimates=estimates)
    assert [node.path_log_prob for node in choose(later)] != before


@pytest.mark.parametrize("called_off", [True, False])
def test_a_window_between_two_rounds_finds_drafts_alone(called_off: bool) -> None:
    session = verify_session(line=LOOP, ngrams=True)
    nodes = choose(session)
    if not called_off:
        session.decide(nodes, [1, 2, 3, 9, *[0] * 5])
    base = session.tree.root.position
    grafted = session.graft(chain_window(1, 2, 3, base=base))
    assert ([node.token_id for node in grafted.added], grafted.num_known, grafted.num_stale) == ([1, 2, 3], 0, 0)
    assert session.tree.num_live == 3


def test_the_credit_is_the_drafters() -> None:
    session = verify_session(line=LOOP, ngrams=True)
    session.graft(chain_window(1, 2, base=19))
    assert len(choose(session)) == 8
    assert len(session.graft(DraftWindow(19, 3, [0] * 18, range(10, 28), [-1.0] * 18)).added) == 18
    assert session.tree.num_live == 20


def test_drafts_outlive_a_round_that_did_not_score_them_and_what_was_looked_up_does_not() -> None:
    session = verify_session(line=LOOP, ngrams=True)
    session.graft(chain_window(1, 2, 3, base=19))
    assert len(choose(session)) == 8
    session.decide([], [1])
    assert [node.token_id for node in session.tree.live_nodes()] == [2, 3]


def quick_verifiers() -> list[tuple[VerifySession, DraftWait]]:
    """Two with the same past in the middle of a repetition, one with a table and one without; with what each taught."""
    pair: list[tuple[VerifySession, DraftWait]] = []
    for ngrams in (True, False):
        estimates = VerifyEstimates()
        session = slow_verifier(coverage=0.6, first_draft=0.05, estimates=estimates, line=LOOP, ngrams=ngrams)
        pair.append((session, estimates.of(greedy=True)[1]))
    return pair


def sure(*token_ids: int, base: int = 20) -> DraftWindow:
    """A chain that is believed to be right."""
    return chain_window(*token_ids, base=base, log_prob=-0.001)


def attitude(draft_wait: DraftWait) -> list[Wait]:
    """What it would do for a slow step with nothing at hand, and with something. Shows all that it has learned: when
    a first draft is expected, when the next level, and by what both gain how often drafts are right."""
    waits = [draft_wait.wait(ReadyDrafts(no_drafts, 1.0, 4.0, 4.0), 8, 0.0) for no_drafts in (True, False)]
    assert all(wait.longest > 0.0 for wait in waits)
    return waits


@pytest.mark.parametrize("drafts", [(), (2,), (2, 3)])
def test_what_was_looked_up_is_nothing_at_hand_when_it_comes_to_waiting(drafts: tuple[int, ...]) -> None:
    (looking, _), (plain, _) = quick_verifiers()
    for session in (looking, plain):
        session.graft(sure(*drafts), now=10.01)
    assert len(choose(looking)) > len(choose(plain)) == len(drafts)
    assert looking.wait(10.01) == plain.wait(10.01)
    assert plain.wait(10.01).longest > 0.0


def test_a_wait_for_the_first_draft_was_in_vain_even_if_a_round_has_looked_up_guesses() -> None:
    learned: list[list[Wait]] = []
    for session, draft_wait in quick_verifiers():
        before = attitude(draft_wait)
        assert session.wait(10.0).longest > 0.0
        session.begin(choose(session), 10.3)
        learned.append(attitude(draft_wait))
        assert learned[-1][0].expected > before[0].expected
        assert learned[-1][1] == before[1]
    assert learned[0] == learned[1]


def test_a_wait_for_the_next_draft_was_in_vain_even_if_looked_up_guesses_stand_there() -> None:
    learned: list[list[Wait]] = []
    for session, draft_wait in quick_verifiers():
        session.graft(sure(2), now=10.1)
        before = attitude(draft_wait)
        assert session.wait(10.1).longest > 0.0
        session.begin(choose(session), 10.4)
        learned.append(attitude(draft_wait))
        assert learned[-1][1].expected > before[1].expected
    assert learned[0] == learned[1]


@pytest.mark.parametrize("third", [4, 9])
@pytest.mark.parametrize("drafts", [(), (2,), (2, 3), (2, 8)])
def test_how_often_drafts_are_right_is_told_by_drafts_alone(drafts: tuple[int, ...], third: int) -> None:
    """Below them looked-up guesses are right or wrong; that is no merit of the drafter's, nor its fault."""
    learned: list[list[Wait]] = []
    for session, draft_wait in quick_verifiers():
        session.graft(sure(*drafts), now=10.1)
        before = attitude(draft_wait)
        nodes = choose(session)
        session.decide(nodes, choices(session, nodes, {(): 2, (2,): 3, (2, 3): third}), now=11.0)
        learned.append(attitude(draft_wait))
        assert (learned[-1] != before) == bool(drafts)
    assert learned[0] == learned[1]


def test_wrong_guesses_that_were_looked_up_are_no_wrong_drafts() -> None:
    for session, draft_wait in quick_verifiers():
        before = attitude(draft_wait)
        session.decide(choose(session), [9] * 9, now=11.0)
        assert attitude(draft_wait) == before


def test_after_a_round_of_looked_up_guesses_the_next_draft_is_a_first_one() -> None:
    learned: list[list[Wait]] = []
    for session, draft_wait in quick_verifiers():
        before = attitude(draft_wait)
        session.decide(choose(session), [9] * 9, now=11.0)
        session.graft(sure(1, base=21), now=11.3)
        learned.append(attitude(draft_wait))
        assert learned[-1][0].expected > before[0].expected
    assert learned[0] == learned[1]


def test_a_report_has_what_was_looked_up_last() -> None:
    session = verify_session(line=LOOP, ngrams=True)
    session.graft(DraftWindow(19, 1, [0, 0], [1, 9], [-0.1, -0.2]))
    nodes = choose(session)
    parents, token_ids = session.scored(nodes)
    assert token_ids[:2] == [1, 9]
    assert token_ids[2:5] == [2, 3, 4]
    assert list(parents[:5]) == [0, 0, 1, 3, 4]
