"""The drafter's session: where it looks next, within its credit, and what it tells."""

from __future__ import annotations

import math

import pytest

from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.expansions import choose_expansions
from outrider.core.draft.session import NODES_BEFORE_FIRST_COMMIT_MAX, DraftSession
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES, margin_bin
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import EXPANSIONS_MAX


def draft_session(
    *, max_run_ahead: int = 8, tree_width: int = 2, max_length: int = 100, estimates: DraftEstimates | None = None
) -> DraftSession:
    """A session at the end of the line [7, 8, 9]."""
    return DraftSession(
        DraftOpen(
            session_id="s",
            token_ids=[7, 8, 9],
            num_prompt_tokens=2,
            sampling=SamplingParams(),
            max_run_ahead=max_run_ahead,
            tree_width=tree_width,
            max_length=max_length,
            vocab_size=100,
        ),
        estimates,
    )


def frontier(session: DraftSession, limit: int) -> list[Node]:
    """At most `limit` nodes, taken to be expanded."""
    taken: list[Node] = []
    while len(taken) < limit and session.best() is not None:
        taken.append(session.take())
    return taken


def drafted_to_the_end(session: DraftSession) -> int:
    """How many live nodes a chain has beyond which nothing may be drafted."""
    while nodes := frontier(session, 1):
        session.expand(nodes[0], [1], [0.0])
    return session.tree.num_live


def log_acceptance(rank: int, margin: float) -> float:
    """What is believed of such a guess at first."""
    return math.log(DRAFT_PROBABILITIES[margin_bin(rank, margin)])


def token_ids(nodes: list[Node]) -> list[int]:
    return [node.token_id for node in nodes]


def test_it_starts_at_the_end_of_the_line() -> None:
    session = draft_session()
    assert frontier(session, 4) == [session.tree.root]
    assert (session.tree.root.position, session.tree.root.token_id) == (2, 9)
    assert session.line.num_generated_tokens == 1


def test_the_most_probable_path_is_expanded_first() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.take(), [1, 2], [1.9, 1.9])
    first = frontier(session, 1)
    assert token_ids(first) == [1]
    session.expand(first[0], [3, 4], [2.5, 2.5])
    assert token_ids(frontier(session, 8)) == [3, 2, 4]


def test_nothing_is_chosen_twice_but_what_was_given_back() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.take(), [1, 2], [1.9, 1.9])
    chosen = frontier(session, 2)
    assert frontier(session, 2) == []
    session.postpone(chosen[:1])
    assert frontier(session, 2) == chosen[:1]


def test_a_postponed_root_stays_first() -> None:
    session = draft_session()
    session.postpone(frontier(session, 1))
    taken = frontier(session, 2)
    assert taken == [session.tree.root]
    session.expand(taken[0], [1], [0.05])
    assert token_ids(frontier(session, 2)) == [1]


@pytest.mark.parametrize(("max_run_ahead", "num_chosen"), [(2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (100, 2)])
def test_the_credit_has_room_for_all_children_of_what_is_chosen(max_run_ahead: int, num_chosen: int) -> None:
    session = draft_session(max_run_ahead=max_run_ahead)
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    assert len(frontier(session, 8)) == num_chosen


def test_a_commit_gives_credit_back() -> None:
    session = draft_session(max_run_ahead=2)
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    assert frontier(session, 1) == []
    session.commit(Commitment(3, [1], False))
    assert frontier(session, 1) == [session.tree.root]


def test_the_deepest_credit_is_used_to_the_last_node() -> None:
    session = draft_session(max_run_ahead=7, tree_width=1)
    while nodes := frontier(session, 1):
        session.expand(nodes[0], [1], [2.0])
    assert session.tree.num_live == 7


def test_nothing_is_drafted_past_the_lines_end() -> None:
    session = draft_session(max_length=5, tree_width=1)
    while nodes := frontier(session, 1):
        session.expand(nodes[0], [1], [2.0])
    assert max(node.position for node in session.tree.live_nodes()) == 4
    session.commit(Commitment(3, [1, 5], False))
    assert frontier(session, 1) == []


def test_a_rollback_starts_afresh_at_the_new_root() -> None:
    session = draft_session()
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    assert not session.commit(Commitment(3, [5], False)).followed
    assert frontier(session, 4) == [session.tree.root]
    assert session.take_window(0.0) is None


def test_what_was_dropped_is_not_chosen_any_more() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    session.expand(frontier(session, 1)[0], [3, 4], [0.1, 0.1])
    session.commit(Commitment(3, [1], False))
    assert token_ids(frontier(session, 8)) == [3, 4]


def test_expanding_what_was_dropped_meanwhile_sends_nothing() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    session.take_window(0.0)
    kept, dropped = frontier(session, 2)
    session.commit(Commitment(3, [1], False))
    session.expand(dropped, [3, 4], [0.1, 0.1])
    assert session.take_window(0.0) is None
    session.expand(kept, [5, 6], [0.1, 0.1])
    sent = session.take_window(0.0)
    assert sent is not None
    assert (sent.base, sent.token_ids) == (3, [5, 6])


def test_expanding_what_was_committed_and_passed_meanwhile_sends_nothing() -> None:
    session = draft_session()
    root = frontier(session, 1)[0]
    session.commit(Commitment(3, [1, 2], False))
    session.expand(root, [1, 5], [0.1, 0.1])
    assert session.take_window(0.0) is None
    assert session.tree.num_live == 0


def test_windows_hold_what_is_new_parents_first() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.take(), [1, 2], [1.5, 1.5])
    session.expand(frontier(session, 1)[0], [3, 4], [2.75, 2.75])
    believed = [log_acceptance(0, 1.5), log_acceptance(1, 1.5), log_acceptance(0, 2.75), log_acceptance(1, 2.75)]
    assert session.take_window(6.5) == DraftWindow(2, 1, [0, 0, 1, 1], [1, 2, 3, 4], believed, 6.5)
    assert session.take_window(1.0) is None
    session.expand(frontier(session, 1)[0], [5, 6], [0.25, 0.25])
    assert session.take_window(1.0) == DraftWindow(2, 5, [3, 3], [5, 6], [log_acceptance(r, 0.25) for r in (0, 1)], 1.0)


@pytest.mark.parametrize("margin", [0.0, 1e300, math.inf, math.nan])
def test_whatever_the_margins_what_is_sent_is_neither_certain_nor_impossible(margin: float) -> None:
    """A lone survivor is infinitely far ahead; a row that is not a number says nothing. Neither must reach the wire."""
    session = draft_session()
    session.expand(session.take(), [1, 2], [margin, margin])
    sent = session.take_window(0.0)
    assert sent is not None
    assert all(-20.0 < log_prob < 0.0 for log_prob in sent.log_probs)


def test_a_commit_applied_twice_changes_nothing() -> None:
    session = draft_session()
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    session.commit(Commitment(3, [1], False))
    root = session.tree.root
    assert session.commit(Commitment(3, [1], False)) == (True, 0)
    assert session.tree.root is root
    assert session.line.token_ids == [7, 8, 9, 1]


@pytest.mark.parametrize(("position", "committed"), [(4, [1]), (2, [5, 1])])
def test_a_gap_or_a_contradiction_is_refused_and_changes_nothing(position: int, committed: list[int]) -> None:
    session = draft_session()
    root = session.tree.root
    with pytest.raises(ProtocolViolationError):
        session.commit(Commitment(position, committed, False))
    assert session.tree.root is root
    assert session.line.token_ids == [7, 8, 9]


def test_sent_nodes_are_counted_until_they_are_decided() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    assert session.num_sent_live == 0
    session.take_window(0.0)
    assert session.num_sent_live == 2
    session.expand(frontier(session, 1)[0], [3, 4], [0.1, 0.1])
    assert session.num_sent_live == 2
    session.commit(Commitment(3, [1], False))
    assert session.num_sent_live == 0


MARGINS = [1.0, 1.0, 1.3, 1.6]  # four guesses about as good as the demonstration pair's


def knowing(right: int) -> DraftEstimates:
    """A drafter whose first guess is always right, or whose guesses are all wrong."""
    estimates = DraftEstimates()
    for _ in range(300):
        for rank, margin in enumerate(MARGINS):
            estimates.calibration(greedy=True).observe(margin_bin(rank, margin), rank < right)
    return estimates


def automatic(estimates: DraftEstimates) -> DraftSession:
    return draft_session(max_run_ahead=200, tree_width=0, max_length=1000, estimates=estimates)


def draft_on(session: DraftSession, num_nodes: int) -> None:
    for node in frontier(session, num_nodes):
        session.expand(node, [1, 2, 3, 4], MARGINS)


def test_the_automatic_width_keeps_only_children_that_are_worth_it() -> None:
    session = automatic(knowing(right=1))
    draft_on(session, 1)
    assert token_ids(list(session.tree.live_nodes())) == [1]
    fresh = automatic(DraftEstimates())
    draft_on(fresh, 1)
    assert len(list(fresh.tree.live_nodes())) == 4


def test_drafting_stops_where_nothing_is_worth_it_any_more() -> None:
    session = automatic(DraftEstimates())
    for _ in range(1000):
        draft_on(session, 1)
    assert session.best() is None
    assert session.tree.num_live < 200, "it was the credit that ended it"
    depths = {node.position for node in session.tree.live_nodes()}
    assert max(depths) - session.tree.root.position > 3


def test_a_fixed_width_drafts_to_the_end_of_its_credit() -> None:
    session = draft_session(max_run_ahead=100, tree_width=1, max_length=1000)
    session.commit(Commitment(3, [1], False))
    assert drafted_to_the_end(session) == 100


def test_before_the_first_commit_little_is_drafted() -> None:
    session = draft_session(max_run_ahead=200, tree_width=1, max_length=1000)
    assert drafted_to_the_end(session) == NODES_BEFORE_FIRST_COMMIT_MAX
    session.commit(Commitment(3, [], False))
    assert drafted_to_the_end(session) == NODES_BEFORE_FIRST_COMMIT_MAX, "nothing was committed"
    outlook = session.outlook(1)
    assert outlook is not None
    assert outlook.credit == 0
    session.commit(Commitment(3, [1], False))
    assert drafted_to_the_end(session) == 200


@pytest.mark.parametrize(("probability_min", "verify_ms"), [(0.5, 1000.0), (0.01, 0.1)])
def test_commits_say_what_a_guess_must_promise(probability_min: float, verify_ms: float) -> None:
    """Because scoring is dear, or because a step is so short that handling a node takes a good part of it."""
    session, other = automatic(DraftEstimates()), automatic(DraftEstimates())
    session.commit(Commitment(3, [5], True, verify_ms, probability_min))
    other.commit(Commitment(3, [5], True, 1000.0, 0.02))
    for _ in range(1000):
        draft_on(session, 1)
        draft_on(other, 1)
    assert 0 < session.tree.num_live < other.tree.num_live


def test_after_a_commit_what_survived_can_be_expanded_further() -> None:
    session = automatic(DraftEstimates())
    while session.best() is not None:
        draft_on(session, 1)
    survivors = len(session.tree.root.children[1].children)
    session.commit(Commitment(3, [1], False, 0.0, 0.0))
    assert survivors > 0
    assert session.best() is not None
    assert session.tree.num_live >= survivors


def test_while_a_path_is_verified_its_alternatives_are_drafted_on_too() -> None:
    """Outcomes: with a few steps' time the tree goes on below the trunk and below the likeliest wrong turns."""
    session = automatic(DraftEstimates())
    for _ in range(12):
        draft_on(session, 2)
    first = session.tree.root.children
    assert all(first[token_id].children for token_id in (1, 2, 3))
    trunk, depth = session.tree.root, 0
    while trunk.children:
        trunk, depth = trunk.children[1], depth + 1
    assert depth > 4


def flat_curve() -> StepCurve:
    curve = StepCurve()
    curve.observe(1, 1.0)
    return curve


def test_the_next_step_is_shared_by_the_best_nodes_of_all_sessions() -> None:
    sure, unsure = draft_session(max_run_ahead=100), draft_session(max_run_ahead=100)
    sure.expand(sure.take(), [1, 2], [2.99, 2.99])
    unsure.expand(unsure.take(), [1, 2], [0.5, 0.5])
    sure_nodes, unsure_nodes = choose_expansions([sure, unsure], flat_curve())
    assert (token_ids(sure_nodes), token_ids(unsure_nodes)) == ([1, 2], [1, 2])


def test_a_dear_step_expands_only_the_best_and_gives_the_rest_back() -> None:
    curve = StepCurve()
    for num_tokens in range(1, 17):
        curve.observe(num_tokens, float(num_tokens))
    session = draft_session(max_run_ahead=100)
    session.expand(session.take(), [1, 2], [2.9, 2.9])
    [nodes] = choose_expansions([session], curve)
    assert token_ids(nodes) == [1]
    assert token_ids(frontier(session, 8)) == [2]


def test_a_step_has_a_bound() -> None:
    session = draft_session(max_run_ahead=200)
    session.commit(Commitment(3, [1], False))
    sizes: list[int] = []
    for _ in range(7):
        [nodes] = choose_expansions([session], flat_curve())
        sizes.append(len(nodes))
        for node in nodes:
            session.expand(node, [1, 2], [0.0, 0.0])
    assert sizes == [1, 2, 4, 8, 16, EXPANSIONS_MAX, EXPANSIONS_MAX]


def test_of_equal_chances_the_first_come_first() -> None:
    curve = StepCurve()
    for num_tokens in range(1, 17):
        curve.observe(num_tokens, 1.0 if num_tokens <= 2 else 10.0)
    chosen = choose_expansions([draft_session(max_run_ahead=100) for _ in range(4)], curve)
    assert [len(nodes) for nodes in chosen] == [1, 1, 0, 0]


def test_beside_a_prompt_more_is_expanded() -> None:
    curve = StepCurve()
    for num_tokens in (1, 16, 128):
        curve.observe(num_tokens, float(num_tokens))
    alone, beside = draft_session(max_run_ahead=100), draft_session(max_run_ahead=100)
    for session in (alone, beside):
        session.expand(session.take(), [1, 2], [1.9, 1.9])
    assert [token_ids(nodes) for nodes in choose_expansions([alone], curve)] == [[1]]
    assert [token_ids(nodes) for nodes in choose_expansions([beside], curve, num_beside=64)] == [[1, 2]]


def test_nobody_with_anything_to_draft_is_no_step() -> None:
    assert choose_expansions([], flat_curve()) == []
    session = draft_session(max_run_ahead=2)
    session.expand(session.take(), [1, 2], [0.1, 0.1])
    assert choose_expansions([session], flat_curve()) == [[]]


def test_the_drafter_learns_from_commits_what_its_guesses_are_worth() -> None:
    estimates = DraftEstimates()
    session = automatic(estimates)
    bins = [margin_bin(rank, margin) for rank, margin in enumerate(MARGINS)]
    before = [estimates.calibration(greedy=True).log_acceptance(each) for each in bins]
    draft_on(session, 1)
    session.commit(Commitment(3, [2], False))
    after = [estimates.calibration(greedy=True).log_acceptance(each) for each in bins]
    assert [now > then for now, then in zip(after, before, strict=True)] == [False, True, False, False]
    assert [estimates.calibration(greedy=False).log_acceptance(each) for each in bins] == before
