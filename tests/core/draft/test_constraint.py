"""A draft session within a constraint: what is forced below a guess is drafted without a step."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.core.draft.session import DraftSession
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.protocol.sampling import SamplingParams


class Runs:
    """After a token below 10 stand as many of 50 as it says, and then there is a choice."""

    def __init__(self) -> None:
        self.committed: list[int] = []

    def allows(self, path: Sequence[int]) -> bool:
        return True

    def forced(self, path: Sequence[int]) -> int | None:
        text = [*self.committed, *path]
        places = [place for place, token_id in enumerate(text) if token_id < 10]
        return 50 if places and len(text) - places[-1] <= text[places[-1]] else None

    def commit(self, token_ids: Sequence[int]) -> None:
        self.committed += token_ids


def session_of(constraint: Runs, *, max_run_ahead: int = 20, max_length: int = 100) -> DraftSession:
    opening = DraftOpen(
        session_id="s",
        token_ids=[90, 91],
        num_prompt_tokens=2,
        sampling=SamplingParams(),
        max_run_ahead=max_run_ahead,
        tree_width=2,
        max_length=max_length,
        vocab_size=100,
    )
    return DraftSession(opening, constraint=constraint)


def drafted(session: DraftSession) -> list[tuple[int, int]]:
    """Position and token of what was not sent yet."""
    window = session.take_window(0.0)
    assert window is not None
    nodes = list(session.tree.live_nodes())
    return sorted((node.position, node.token_id) for node in nodes if node.node_id >= window.first_id)


def test_forced_tokens_stand_below_each_guess_and_the_last_is_expanded_next() -> None:
    session = session_of(Runs())
    session.expand(session.take(), [3, 12], [5.0, 1.0])
    assert drafted(session) == [(2, 3), (2, 12), (3, 50), (4, 50), (5, 50)]
    expanded = session.take()
    assert (expanded.position, expanded.token_id) == (5, 50)
    assert expanded.proposals is None
    session.expand(expanded, [13], [5.0])
    assert drafted(session) == [(6, 13)]


def test_they_take_no_more_than_the_credit_and_the_line_has_room_for() -> None:
    session = session_of(Runs(), max_run_ahead=4)
    session.expand(session.take(), [9, 12], [5.0, 1.0])
    assert session.tree.num_live == 4
    session = session_of(Runs(), max_length=5)
    session.expand(session.take(), [9], [5.0])
    assert drafted(session) == [(2, 9), (3, 50), (4, 50)]
    assert session.best() is None


def test_what_is_committed_among_them_is_told_to_the_constraint_once() -> None:
    constraint = Runs()
    session = session_of(constraint)
    session.expand(session.take(), [3], [5.0])
    for _ in range(2):
        session.commit(Commitment(2, [3, 50], False))
    assert constraint.committed == [3, 50]
    assert session.tree.num_live == 2
    last = session.take()
    assert (last.position, last.token_id) == (5, 50)
