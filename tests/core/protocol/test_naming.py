"""Names on a stream: what a window says, what it may not say, and what becomes of its nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.naming import WINDOW_NODES_MAX, Inbound, Outbound
from outrider.core.protocol.tree import RECENT_COMMITS_MAX, Node, SpeculationTree

VOCAB_SIZE = 10


def window(first_id: int, *nodes: tuple[int, int], base: int = 0, draft_ms: float = 0.0) -> DraftWindow:
    """A window of (parent id, token id) pairs."""
    return DraftWindow(base, first_id, [p for p, _ in nodes], [t for _, t in nodes], [-1.0] * len(nodes), draft_ms)


def inbound(max_live_nodes: int = 100) -> Inbound:
    return Inbound(vocab_size=VOCAB_SIZE, max_live_nodes=max_live_nodes)


def chain(tree: SpeculationTree, token_ids: Sequence[int]) -> list[Node]:
    """Attaches a chain below the root."""
    nodes = [tree.root]
    for token_id in token_ids:
        child = tree.attach(nodes[-1], token_id, -1.0)
        assert child is not None
        nodes.append(child)
    return nodes[1:]


def test_a_window_counts_on_and_names_parents() -> None:
    tree, outbound = SpeculationTree(7, 0), Outbound()
    assert outbound.window(tree, chain(tree, [1, 2]), 3.0) == DraftWindow(7, 1, [0, 1], [1, 2], [-1.0, -1.0], 3.0)
    tree.commit([1])
    sibling = tree.attach(tree.root, 5, -0.25)
    assert sibling is not None
    assert outbound.window(tree, [sibling]) == DraftWindow(8, 3, [0], [5], [-0.25])


def test_dead_nodes_are_not_sent_and_use_up_no_ids() -> None:
    tree, outbound = SpeculationTree(0, 0), Outbound()
    dead = chain(tree, [1, 2])
    tree.commit([3])
    assert outbound.window(tree, dead) is None
    alive = chain(tree, [4])
    sent = outbound.window(tree, dead + alive)
    assert sent is not None
    assert (sent.first_id, sent.token_ids) == (1, [4])


def test_a_window_grafts_the_same_paths() -> None:
    tree = SpeculationTree(0, 0)
    added, num_known, num_stale, _ = inbound().graft(tree, window(1, (0, 1), (1, 2), (0, 3)))
    assert [(node.position, node.token_id) for node in added] == [(1, 1), (2, 2), (1, 3)]
    assert (num_known, num_stale, tree.num_live) == (0, 0, 3)


def test_a_repeated_window_changes_nothing() -> None:
    tree, receiver = SpeculationTree(0, 0), inbound()
    first = window(1, (0, 1), (1, 2))
    receiver.graft(tree, first)
    receiver.graft(tree, window(3, (2, 3)))
    again = receiver.graft(tree, first)
    assert again.num_news == 0
    assert tree.num_live == 3
    # An overlap adds what is new alone.
    assert receiver.graft(tree, window(3, (2, 3), (3, 4))).num_news == 1


def test_a_guess_in_flight_is_absorbed_by_what_was_committed_meanwhile() -> None:
    tree = SpeculationTree(0, 0)
    tree.commit([1, 2])
    added, num_known, num_stale, _ = inbound().graft(tree, window(1, (0, 1), (1, 2), (2, 3), (1, 4), (0, 5), (5, 6)))
    assert [(node.position, node.token_id) for node in added] == [(3, 3)]
    assert (num_known, num_stale) == (2, 3)
    assert added[0].parent is tree.root


def test_a_parent_that_became_void_is_stale_and_not_unknown() -> None:
    tree, receiver = SpeculationTree(0, 0), inbound()
    receiver.graft(tree, window(1, (0, 1), (1, 2)))
    tree.commit([3])
    assert receiver.graft(tree, window(3, (2, 4), (3, 5))) == ([], 0, 2, [])


def test_two_streams_name_one_path_twice_and_it_stays_one_node() -> None:
    tree = SpeculationTree(0, 0)
    inbound().graft(tree, window(1, (0, 1), (1, 2)))
    added, num_known, _, _ = inbound().graft(tree, window(1, (0, 1), (1, 2), (2, 3)))
    assert num_known == 2
    assert [node.position for node in added] == [3]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (DraftWindow(0, 1, [0], [1, 2], [-1.0, -1.0]), "one length"),
        (DraftWindow(0, 1, [0, 1], [1, 2], [-1.0]), "one length"),
        (window(1, *[(0, 1)] * (WINDOW_NODES_MAX + 1)), "exceeds the bound"),
        (window(2, (0, 1)), "leaves a gap"),
        (window(0, (0, 1)), "leaves a gap"),
        (window(1, (0, 1), base=1), "not committed"),
        (window(1, (1, 1)), "unknown parent 1"),
        (window(1, (0, 1), (3, 1)), "unknown parent 3"),
        (window(1, (-1, 1)), "unknown parent -1"),
        (window(1, (0, VOCAB_SIZE)), "out of range"),
        (window(1, (0, -1)), "out of range"),
        (DraftWindow(0, 1, [0], [1], [math.nan]), "log-probability nan"),
        (DraftWindow(0, 1, [0], [1], [-math.inf]), "log-probability -inf"),
        (DraftWindow(0, 1, [0], [1], [0.1]), "log-probability 0.1"),
        (window(1, (0, 1), draft_ms=math.nan), "draft_ms nan"),
        (window(1, (0, 1), draft_ms=math.inf), "draft_ms inf"),
        (window(1, (0, 1), draft_ms=-1.0), "draft_ms -1"),
        (replace(window(1, (0, 1)), sent_ms=math.nan), "sent_ms nan"),
    ],
)
def test_a_breach_of_the_protocol_is_refused_and_adds_nothing(broken: DraftWindow, message: str) -> None:
    tree = SpeculationTree(0, 0)
    with pytest.raises(ProtocolViolationError, match=message):
        inbound().graft(tree, broken)
    assert tree.num_live == 0


def test_the_largest_window_and_the_last_token_id_are_allowed() -> None:
    tree = SpeculationTree(0, 0)
    receiver = inbound(max_live_nodes=WINDOW_NODES_MAX)
    nodes = [(node_id - 1, VOCAB_SIZE - 1) for node_id in range(1, WINDOW_NODES_MAX + 1)]
    assert len(receiver.graft(tree, window(1, *nodes)).added) == WINDOW_NODES_MAX


def test_the_credit_bounds_live_nodes() -> None:
    tree, receiver = SpeculationTree(0, 0), inbound(max_live_nodes=2)
    receiver.graft(tree, window(1, (0, 1), (1, 2)))
    with pytest.raises(ProtocolViolationError, match="exceed the credit of 2"):
        receiver.graft(tree, window(3, (2, 3)))


def test_a_commit_gives_credit_back() -> None:
    tree, receiver = SpeculationTree(0, 0), inbound(max_live_nodes=2)
    receiver.graft(tree, window(1, (0, 1), (1, 2)))
    tree.commit([1])
    assert len(receiver.graft(tree, window(3, (2, 3))).added) == 1


def test_a_chain_goes_on_through_every_sweep() -> None:
    """Names of nodes far behind the line are forgotten; those that can still be parents are not."""
    sender, receiver_tree = SpeculationTree(0, 0), SpeculationTree(0, 0)
    outbound, receiver = Outbound(), inbound(max_live_nodes=4)
    for step in range(3 * RECENT_COMMITS_MAX):
        sent = outbound.window(sender, chain(sender, [step % VOCAB_SIZE]))
        assert sent is not None
        assert len(receiver.graft(receiver_tree, sent).added) == 1
        for tree in (sender, receiver_tree):
            assert tree.commit([step % VOCAB_SIZE]).followed
    assert len(receiver._nodes) <= 2 * (RECENT_COMMITS_MAX + 4)


def test_a_receiver_that_was_too_far_ahead_finds_its_way_back() -> None:
    """Guesses about a forgotten past are stale; as soon as the sender has caught up its next ones count again."""
    sender, receiver_tree = SpeculationTree(0, 0), SpeculationTree(0, 0)
    outbound, receiver = Outbound(), inbound()
    receiver_tree.commit([1] * (RECENT_COMMITS_MAX + 1))
    for _ in range(RECENT_COMMITS_MAX + 1):
        sent = outbound.window(sender, chain(sender, [1]))
        assert sent is not None
        receiver.graft(receiver_tree, sent)
        assert sender.commit([1]).followed
    sent = outbound.window(sender, chain(sender, [2]))
    assert sent is not None
    assert len(receiver.graft(receiver_tree, sent).added) == 1


def test_a_sender_cannot_fill_the_memory_with_names_for_one_path() -> None:
    tree, receiver = SpeculationTree(0, 0), inbound(max_live_nodes=4)
    bound = RECENT_COMMITS_MAX + 4
    windows = [window(first_id, *[(0, 1)] * 100) for first_id in range(1, 3 * bound, 100)]
    with pytest.raises(ProtocolViolationError, match="give each path one id"):
        _graft_all(receiver, tree, windows)


def _graft_all(receiver: Inbound, tree: SpeculationTree, windows: list[DraftWindow]) -> None:
    for each in windows:
        receiver.graft(tree, each)


def test_guesses_for_a_decided_place_are_reported_with_their_ranks() -> None:
    tree = SpeculationTree(4, 0)
    tree.commit([7, 8])
    # 6, 7 and 5 below the old root; 9 and 8 below the committed 7; 1 below the root itself, which is not decided.
    grafted = inbound().graft(tree, window(1, (0, 6), (0, 7), (0, 5), (2, 9), (2, 8), (5, 1), base=4))
    assert [(rank, right) for rank, _, right in grafted.late] == [
        (0, False),
        (1, True),
        (2, False),
        (0, False),
        (1, True),
    ]
    assert [node.token_id for node in grafted.added] == [1]
