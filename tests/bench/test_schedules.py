"""Rivals' rules on the virtual clock: each keeps the schedule that its paper describes."""

from __future__ import annotations

import pytest

from bench.rivals.modes import PolicyName
from bench.rivals.ruled import ABLATIONS
from bench.rivals.rules import FREE_CREDIT, Amusd, InTurn, Pearl
from bench.simulate import theory
from bench.simulate.synthetic import SCHEMES, Point, at_point, speculation_of
from bench.simulate.virtual import Outcome, Speculation
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import SpeculationTree
from outrider.plan.theory import expected_tokens, synchronous

NUM_TOKENS = 3000
MAX_LENGTH = 100
RIVALS = Speculation(tree_width=1, run_ahead=FREE_CREDIT, max_draft_tokens=FREE_CREDIT)


class Mirror:
    """A verifier's session of which a rule sees line and tree; one token has been generated, a chain is at hand."""

    def __init__(self, num_drafts: int) -> None:
        self.line = Line([1, 2, 3, 4], num_prompt_tokens=3)
        self.tree = SpeculationTree(3, 4)
        self.guessed_length = 0
        self.extend(num_drafts)

    def extend(self, num_drafts: int) -> None:
        node = self.tree.root
        while node.children:
            node = next(iter(node.children.values()))
        for token_id in range(num_drafts):
            child = self.tree.attach(node, 10 + node.position + token_id, -0.1)
            assert child is not None
            node = child

    def commit(self, token_ids: list[int]) -> None:
        self.line.commit(len(self.line), token_ids)
        self.tree.commit(token_ids)


def num_scored(drafts: list[object] | None) -> int | None:
    return None if drafts is None else len(drafts)


def run(policy_name: tuple[str, int], point: Point, speculation: Speculation) -> Outcome:
    return point.run(speculation, PolicyName(*policy_name), num_tokens=NUM_TOKENS)


@pytest.mark.parametrize(
    ("lookahead", "alpha", "draft_step", "delay"),
    [
        *((1, 0.8, 0.1, 0.0), (7, 0.8, 0.1, 0.0)),
        *((2, 0.6, 0.35, 0.0), (4, 0.6, 0.35, 0.0)),
        *((1, 0.7, 0.2, 0.25), (4, 0.7, 0.2, 0.25)),
    ],
)
def test_in_turn_takes_what_leviathans_formula_says(
    lookahead: int, alpha: float, draft_step: float, delay: float
) -> None:
    """Equation 1, with a message each way; the rest is the scatter of 3000 tokens' guesses."""
    outcome = run(
        ("synchronous", lookahead),
        Point(alpha=alpha, draft_step=draft_step, delay=delay),
        RIVALS,
    )
    assert outcome.time_per_token == pytest.approx(synchronous(alpha, draft_step, lookahead, delay), rel=0.05)
    assert outcome.acceptance_length == pytest.approx(expected_tokens(alpha, lookahead), rel=0.05)
    assert outcome.overlap < 0.01


def test_in_turn_waits_for_all_drafts_but_not_for_more_than_the_line_has_room_for() -> None:
    session = Mirror(3)
    assert num_scored(InTurn(4, MAX_LENGTH).next_round(session)) is None
    session.extend(1)
    assert num_scored(InTurn(4, MAX_LENGTH).next_round(session)) == 4
    near_the_end = len(session.line) + 3
    assert num_scored(InTurn(4, near_the_end).next_round(session)) == 2


def test_amusd_waits_for_two_drafts_and_takes_all_there_are() -> None:
    session = Mirror(1)
    rule = Amusd(2, MAX_LENGTH)
    assert num_scored(rule.next_round(session)) is None
    session.extend(1)
    assert num_scored(rule.next_round(session)) == 2
    session.extend(5)
    assert num_scored(rule.next_round(session)) == 7


def test_amusd_with_a_perfect_draft_goes_at_the_slower_devices_pace() -> None:
    point = Point(alpha=1.0, draft_step=0.35)
    outcome = run(("amusd", 2), point, RIVALS)
    assert outcome.time_per_token == pytest.approx(0.35, rel=0.02)
    assert outcome.overlap > 0.9


def test_pearl_scores_nothing_after_a_rejection_and_the_rest_of_a_window_that_stands() -> None:
    rule = Pearl(4, MAX_LENGTH)
    session = Mirror(0)
    assert num_scored(rule.next_round(session)) == 0, "pre-verify"
    session.extend(4)
    session.commit([13])  # the first of the four stands
    assert num_scored(rule.next_round(session)) == 3, "post-verify"
    session.commit([9])  # a rejection
    assert num_scored(rule.next_round(session)) == 0


def test_pearl_believes_a_guess_that_came_while_its_place_was_decided() -> None:
    session = Mirror(0)
    rule = Pearl(3, MAX_LENGTH)
    assert num_scored(rule.next_round(session)) == 0
    session.commit([9])
    session.guessed_length = len(session.line)
    assert num_scored(rule.next_round(session)) is None
    session.extend(2)
    assert num_scored(rule.next_round(session)) == 2


def test_pearl_waits_for_the_end_of_a_window() -> None:
    rule = Pearl(4, MAX_LENGTH)
    session = Mirror(2)
    session.commit([13])
    assert num_scored(rule.next_round(session)) is None
    session.extend(2)
    assert num_scored(rule.next_round(session)) == 3


@pytest.mark.parametrize(("alpha", "draft_step", "window"), [(0.6, 0.25, 4), (0.8, 0.25, 4), (0.8, 0.5, 2)])
def test_pearl_takes_about_what_its_formula_says(alpha: float, draft_step: float, window: int) -> None:
    """Where windows take as long as verify steps. Ours need no barrier, and credit lets the drafter go on after one."""
    outcome = run(
        ("pearl", window),
        Point(alpha=alpha, draft_step=draft_step),
        RIVALS,
    )
    assert outcome.time_per_token == pytest.approx(theory.pearl(alpha, draft_step, window), rel=0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_useless_draft_never_makes_ours_much_slower(scheme: str) -> None:
    """The off switch. Rivals have none: they pay."""
    policy, speculation = speculation_of(scheme, 4, 4)
    outcome = Point(alpha=0.0, draft_step=0.3).run(speculation, policy, num_tokens=600)
    if policy is None:
        assert outcome.time_per_token < 1.0 / 0.97
    else:
        assert outcome.time_per_token >= 1.0 - 1e-9


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_still_speculates(name: str) -> None:
    outcome = run(
        (name, 0), Point(alpha=0.8, draft_step=0.2), Speculation(tree_width=3, run_ahead=64, max_draft_tokens=24)
    )
    assert 0.1 < outcome.time_per_token < 1.0


def test_no_wait_never_waits() -> None:
    """A verifier that never waits is always at work, one that may wait is not."""
    speculation, point = Speculation(tree_width=1), Point(alpha=0.9, draft_step=0.05)
    hasty = point.run(speculation, PolicyName("no_wait"), num_tokens=NUM_TOKENS)
    assert hasty.time_per_token * hasty.acceptance_length == pytest.approx(1.0, rel=1e-6)


def test_every_scheme_meets_the_same_guesses() -> None:
    found = at_point(Point(alpha=0.7, draft_step=0.2), 200)
    assert found["time_per_token"].keys() == SCHEMES.keys()
    assert found == at_point(Point(alpha=0.7, draft_step=0.2), 200)
