"""What is told of a round: the guesses at hand, which were scored, and what the verdict made of each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from outrider.core.coordinate.round import (
    DRAFT_STEPS_MAX,
    NODE_CHARACTERS_MAX,
    DraftStep,
    NodeFate,
    Round,
    RoundNode,
    RoundReporter,
)
from outrider.core.coordinate.session import Session
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import DraftWindow, ScoredNodes, Verdict

VERIFIER = "verify:1"


def new_session() -> Session:
    return Session([7, 8, 9], vocab_size=100, max_run_ahead=20, drafting=True)


def new_reporter() -> RoundReporter:
    return RoundReporter(3, lambda token_id: f"<{token_id}>")


def played(reporter: RoundReporter, session: Session, verdict: Verdict, verifier: str = VERIFIER) -> Round:
    """The report of a round that brings something new."""
    before = reporter.before(session, verdict)
    outcome = session.on_verdict(verdict)
    assert outcome is not None
    return reporter.after(session, before, outcome.emit, verifier, 40.0)


def node(parent: int, token_id: int, log_prob: float, fate: NodeFate, *, scored: bool, looked_up: bool = False):
    return RoundNode(parent, token_id, f"<{token_id}>", log_prob, looked_up, scored, fate)


# 1 -> 2 and 3 below it, 4 beside 1.
TREE = DraftWindow(2, 1, [0, 1, 1, 0], [1, 2, 3, 4], [-0.1, -0.2, -0.3, -0.4])


def test_each_guess_has_its_fate() -> None:
    session, reporter = new_session(), new_reporter()
    session.on_drafted(TREE)
    session.on_drafted(DraftWindow(2, 5, [3], [5], [-0.5]))
    # 1 and 2 are scored, 1 is accepted, and instead of 2 the target adds 3, which was guessed too.
    scored = ScoredNodes([0, 1], [1, 2])
    verdict = Verdict(position=3, token_ids=[1, 3], num_accepted=1, num_draft_tokens=2, verify_ms=5, scored=scored)
    found = played(reporter, session, verdict)
    fates = {each.token_id: (each.fate, each.scored) for each in found.nodes}
    assert fates == {
        1: (NodeFate.ACCEPTED, True),
        2: (NodeFate.DROPPED, True),
        3: (NodeFate.FORESEEN, False),
        4: (NodeFate.DROPPED, False),
        5: (NodeFate.LIVE, False),
    }
    tokens = {number: each.token_id for number, each in enumerate(found.nodes, 1)}
    assert {each.token_id: tokens.get(each.parent) for each in found.nodes} == {1: None, 2: 1, 3: 1, 4: None, 5: 3}
    assert all(each.parent < number for number, each in enumerate(found.nodes, 1))
    assert (found.completion, found.number, found.position, found.rolled_back) == (3, 0, 3, False)
    assert (found.at_ms, found.verify_ms, found.num_accepted_drafts) == (40.0, 5.0, 1)


def test_what_the_verifier_looked_up_stands_below_what_was_drafted() -> None:
    session, reporter = new_session(), new_reporter()
    session.on_drafted(DraftWindow(2, 1, [0], [1], [-0.1]))
    verdict = Verdict(
        position=3,
        token_ids=[1, 6, 9],
        num_accepted=2,
        num_draft_tokens=3,
        num_prompt_lookup=2,
        num_accepted_prompt_lookup=1,
        scored=ScoredNodes([0, 1, 2], [1, 6, 7]),
    )
    found = played(reporter, session, verdict)
    assert found.nodes == (
        node(0, 1, -0.1, NodeFate.ACCEPTED, scored=True),
        node(1, 6, 0.0, NodeFate.ACCEPTED, scored=True, looked_up=True),
        node(2, 7, 0.0, NodeFate.DROPPED, scored=True, looked_up=True),
    )
    assert found.num_accepted_drafts == 1
    assert found.rolled_back


def test_a_rollback_drops_everything_and_stale_nodes_are_told_with_the_next_round() -> None:
    session, reporter = new_session(), new_reporter()
    session.on_drafted(TREE)
    found = played(reporter, session, Verdict(position=3, token_ids=[50], num_accepted=0, num_draft_tokens=0))
    assert found.rolled_back
    assert {each.fate for each in found.nodes} == {NodeFate.DROPPED}
    late = DraftWindow(2, 5, [0, 5], [6, 7], [-0.1, -0.1])
    session.on_drafted(late)
    found = played(reporter, session, Verdict(position=4, token_ids=[51], num_accepted=0, num_draft_tokens=0))
    assert (found.number, found.nodes, found.num_stale_nodes) == (1, (), 2)


def test_draft_steps_come_with_the_next_round_and_workers_are_numbered() -> None:
    session, reporter = new_session(), new_reporter()
    for number, address in enumerate(["d:1", "d:1", "d:2"]):
        reporter.on_window(address, replace(TREE, draft_ms=2.0), float(number))
    found = played(reporter, session, Verdict(position=3, token_ids=[1], num_accepted=0, num_draft_tokens=0))
    assert found.draft_steps == (DraftStep(0, 2, 4, 0), DraftStep(1, 2, 4, 0), DraftStep(2, 2, 4, 1))
    again = Verdict(position=4, token_ids=[1], num_accepted=0, num_draft_tokens=0)
    found = played(reporter, session, again, "verify:2")
    assert (found.draft_steps, found.verifier) == ((), 1)


def test_a_report_is_bounded() -> None:
    session = new_session()
    reporter = RoundReporter(0, lambda _: "x" * 1000)
    session.on_drafted(TREE)
    for number in range(DRAFT_STEPS_MAX + 5):
        reporter.on_window("d", TREE, float(number))
    verdict = Verdict(position=3, token_ids=[1], num_accepted=0, num_draft_tokens=0, verify_ms=math.nan)
    found = played(reporter, session, verdict)
    assert [step.at_ms for step in found.draft_steps] == [float(number) for number in range(5, DRAFT_STEPS_MAX + 5)]
    assert {len(each.text) for each in found.nodes} == {NODE_CHARACTERS_MAX}
    assert found.verify_ms == 0.0


def test_a_verdict_for_an_older_place_marks_nothing() -> None:
    session, reporter = new_session(), new_reporter()
    played(reporter, session, Verdict(position=3, token_ids=[1], num_accepted=0, num_draft_tokens=0))
    session.on_drafted(DraftWindow(3, 1, [0], [2], [-0.1]))
    again = Verdict(position=3, token_ids=[1, 2], num_accepted=1, num_draft_tokens=1, scored=ScoredNodes([0], [1]))
    found = played(reporter, session, again)
    assert [(each.token_id, each.scored, each.fate) for each in found.nodes] == [(2, False, NodeFate.FORESEEN)]


@pytest.mark.parametrize(
    "scored", [ScoredNodes([0], [1]), ScoredNodes([0, 0], [1]), ScoredNodes([0, 2], [1, 2]), ScoredNodes([], [1, 2])]
)
def test_scored_nodes_that_cannot_be_end_the_stream(scored: ScoredNodes) -> None:
    verdict = Verdict(position=3, token_ids=[1], num_accepted=0, num_draft_tokens=2, scored=scored)
    with pytest.raises(ProtocolViolationError):
        new_reporter().before(new_session(), verdict)
