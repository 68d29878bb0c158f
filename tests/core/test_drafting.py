"""The drafter's session: where it looks next, within its credit, and what it tells."""

from __future__ import annotations

import math

import pytest

from outrider.core.drafting import DraftSession
from outrider.core.errors import ProtocolViolationError
from outrider.core.messages import DraftOpen, Window
from outrider.core.sampling import SamplingParams
from outrider.core.tree import Node


def draft_session(*, max_run_ahead: int = 8, tree_width: int = 2, max_length: int = 100) -> DraftSession:
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
        )
    )


def token_ids(nodes: list[Node]) -> list[int]:
    return [node.token_id for node in nodes]


def test_it_starts_at_the_end_of_the_line() -> None:
    session = draft_session()
    assert session.frontier(4) == [session.tree.root]
    assert (session.tree.root.position, session.tree.root.token_id) == (2, 9)
    assert session.line.num_generated_tokens == 1


def test_the_most_probable_path_is_expanded_first() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.tree.root, [1, 2], [-0.1, -2.0])
    first = session.frontier(1)
    assert token_ids(first) == [1]
    session.expand(first[0], [3, 4], [-0.5, -3.0])
    assert token_ids(session.frontier(8)) == [3, 2, 4]


def test_nothing_is_chosen_twice_but_what_was_given_back() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.tree.root, [1, 2], [-0.1, -2.0])
    chosen = session.frontier(2)
    assert session.frontier(2) == []
    session.postpone(chosen[:1])
    assert session.frontier(2) == chosen[:1]


def test_a_postponed_root_stays_first() -> None:
    session = draft_session()
    session.postpone(session.frontier(1))
    assert session.frontier(2) == [session.tree.root]
    session.expand(session.tree.root, [1], [-1.0])
    assert token_ids(session.frontier(2)) == [1]


@pytest.mark.parametrize(("max_run_ahead", "num_chosen"), [(2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (100, 2)])
def test_the_credit_has_room_for_all_children_of_what_is_chosen(max_run_ahead: int, num_chosen: int) -> None:
    session = draft_session(max_run_ahead=max_run_ahead)
    session.expand(session.tree.root, [1, 2], [-0.1, -0.2])
    assert len(session.frontier(8)) == num_chosen


def test_a_commit_gives_credit_back() -> None:
    session = draft_session(max_run_ahead=2)
    session.expand(session.tree.root, [1, 2], [-0.1, -0.2])
    assert session.frontier(1) == []
    session.commit(3, [1])
    assert session.frontier(1) == [session.tree.root]


def test_the_deepest_credit_is_used_to_the_last_node() -> None:
    session = draft_session(max_run_ahead=7, tree_width=1)
    while nodes := session.frontier(1):
        session.expand(nodes[0], [1], [-0.1])
    assert session.tree.num_live == 7


def test_nothing_is_drafted_past_the_lines_end() -> None:
    session = draft_session(max_length=5, tree_width=1)
    while nodes := session.frontier(1):
        session.expand(nodes[0], [1], [-0.1])
    assert max(node.position for node in session.tree.live_nodes()) == 4
    session.commit(3, [1, 5])
    assert session.frontier(1) == []


def test_a_rollback_starts_afresh_at_the_new_root() -> None:
    session = draft_session()
    session.expand(session.tree.root, [1, 2], [-0.1, -0.2])
    assert not session.commit(3, [5]).followed
    assert session.frontier(4) == [session.tree.root]
    assert session.take_window(0.0) is None


def test_what_was_dropped_is_not_chosen_any_more() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.tree.root, [1, 2], [-0.1, -0.2])
    session.expand(session.frontier(1)[0], [3, 4], [-0.3, -0.4])
    session.commit(3, [1])
    assert token_ids(session.frontier(8)) == [3, 4]


def test_expanding_what_was_dropped_meanwhile_sends_nothing() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.tree.root, [1, 2], [-0.1, -0.2])
    session.take_window(0.0)
    kept, dropped = session.frontier(2)
    session.commit(3, [1])
    session.expand(dropped, [3, 4], [-0.1, -0.2])
    assert session.take_window(0.0) is None
    session.expand(kept, [5, 6], [-0.1, -0.2])
    sent = session.take_window(0.0)
    assert sent is not None
    assert (sent.base, sent.token_ids) == (3, [5, 6])


def test_expanding_what_was_committed_and_passed_meanwhile_sends_nothing() -> None:
    session = draft_session()
    root = session.frontier(1)[0]
    session.commit(3, [1, 2])
    session.expand(root, [1, 5], [-0.1, -0.2])
    assert session.take_window(0.0) is None
    assert session.tree.num_live == 0


def test_windows_hold_what_is_new_parents_first() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.tree.root, [1, 2], [-0.5, -2.0])
    session.expand(session.frontier(1)[0], [3, 4], [-0.25, -3.0])
    assert session.take_window(6.5) == Window(2, 1, [0, 0, 1, 1], [1, 2, 3, 4], [-0.5, -2.0, -0.25, -3.0], 6.5)
    assert session.take_window(1.0) is None
    session.expand(session.frontier(1)[0], [5, 6], [-0.5, -0.75])
    assert session.take_window(1.0) == Window(2, 5, [3, 3], [5, 6], [-0.5, -0.75], 1.0)


def test_log_probs_above_zero_by_rounding_are_cut_and_impossible_tokens_left_out() -> None:
    session = draft_session()
    session.expand(session.tree.root, [1, 2], [1e-7, -math.inf])
    sent = session.take_window(0.0)
    assert sent is not None
    assert (sent.token_ids, sent.log_probs) == ([1], [0.0])


def test_a_commit_applied_twice_changes_nothing() -> None:
    session = draft_session()
    session.expand(session.tree.root, [1, 2], [-0.1, -0.2])
    session.commit(3, [1])
    root = session.tree.root
    assert session.commit(3, [1]) == (True, 0)
    assert session.tree.root is root
    assert session.line.token_ids == [7, 8, 9, 1]


@pytest.mark.parametrize(("position", "committed"), [(4, [1]), (2, [5, 1])])
def test_a_gap_or_a_contradiction_is_refused_and_changes_nothing(position: int, committed: list[int]) -> None:
    session = draft_session()
    root = session.tree.root
    with pytest.raises(ProtocolViolationError):
        session.commit(position, committed)
    assert session.tree.root is root
    assert session.line.token_ids == [7, 8, 9]


def test_sent_nodes_are_counted_until_they_are_decided() -> None:
    session = draft_session(max_run_ahead=100)
    session.expand(session.tree.root, [1, 2], [-0.1, -0.2])
    assert session.num_sent_live == 0
    session.take_window(0.0)
    assert session.num_sent_live == 2
    session.expand(session.frontier(1)[0], [3, 4], [-0.1, -0.2])
    assert session.num_sent_live == 2
    session.commit(3, [1])
    assert session.num_sent_live == 0
