"""The drafter: expands the most promising nodes of all its sessions, step after step. Device thread only."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from outrider.core.drafting import DraftSession
from outrider.core.errors import ProtocolViolationError
from outrider.core.messages import Commitment, DraftOpen, Opened, Window
from outrider.core.selection import paths_to
from outrider.core.tree import Node
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.sampling import Row
from outrider.engine.slots import Slot
from outrider.worker.outbox import Outbox
from outrider.worker.roster import Roster

EXPANSIONS_MAX = 4
"""Most nodes of one session expanded in one step. On the demonstration pair a step over 4 tokens takes 1.1 times one
over 1; a chain never has more than one node to expand."""

COALESCE_SHARE = 0.25
"""While the verifier has something to verify, nodes are gathered for this share of a verify step before they are
sent: a quarter costs a node little freshness and saves most messages."""

DraftEvent = Opened | Window


class Drafting:
    """One session at the drafter."""

    def __init__(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> None:
        self.opening = opening
        self.outbox = outbox
        self.state = DraftSession(opening)
        self.slot: Slot | None = None
        self.chosen: list[Node] = []
        """The nodes that the present step expands."""
        self.verifier_starves = True
        """Whether everything sent so far has been decided: the next nodes go out at once."""
        self.finishing = False
        """Whether no more commits will come: the session ends when its credit is used up."""
        self.verify_seconds = 0.0
        self.last_sent = 0.0
        """When the last window went out, on the monotonic clock."""
        self.draft_seconds = 0.0
        """Time in forward passes since the last window."""
        self.drafting_since_ns = 0
        """Wall-clock start of the first of those passes."""


class Drafter:
    """Steps all sessions that have credit in one forward pass."""

    def __init__(self, engine: Engine) -> None:
        self._roster: Roster[Drafting] = Roster(engine)

    def open(self, session: Drafting) -> None:
        """Gives the session a slot, or fails it."""
        self._roster.admit(session, time.time_ns())

    def commit(self, session: Drafting, commitment: Commitment) -> None:
        """Moves the session's line and tree along; a rollback is the same movement."""
        if session.slot is None:
            return
        state = session.state
        num_before = len(state.line)
        try:
            state.commit(commitment.position, commitment.token_ids)
            if any(not 0 <= token_id < self._roster.engine.vocab_size for token_id in commitment.token_ids):
                raise ProtocolViolationError("a committed token id is beyond the draft model's vocabulary")
        except ProtocolViolationError as violation:
            self._roster.fail(session, violation)
            return
        self._roster.sampler.commit(session.slot.index, state.line.token_ids[num_before:])
        session.verify_seconds = commitment.verify_ms / 1000.0
        session.verifier_starves = state.num_sent_live == 0

    def finish(self, session: Drafting) -> None:
        """No more commits will come: the session drafts on while it has credit, then ends."""
        session.finishing = True

    def close(self, session: Drafting) -> None:
        """Frees the session's slot, if it still has one."""
        self._roster.dismiss(session)

    def step(self) -> float | None:
        """Expands every session that has something to expand. See `Worker.step`."""
        sessions = self._roster.sessions
        for session in sessions:
            session.chosen = session.state.frontier(EXPANSIONS_MAX)
        busy = [session for session in sessions if session.chosen]
        if busy:
            self._roster.run(busy, self._expand)
        now = time.monotonic()
        for session in sessions:
            self._send_if_due(session, now)
        for session in [session for session in sessions if session.finishing and not session.chosen]:
            session.outbox.end()
            self.close(session)
        return 0.0 if busy else None

    def _expand(self, sessions: Sequence[Drafting]) -> None:
        started, started_ns = time.monotonic(), time.time_ns()
        output = self._roster.engine.step([_job(session, session.chosen) for session in sessions])
        rows: list[Row] = []
        complete: list[tuple[Drafting, list[Node], int]] = []
        for session, num_rows in zip(sessions, output.num_rows, strict=True):
            if num_rows is None:
                session.state.postpone(session.chosen)
            else:
                complete.append((session, session.chosen, len(rows)))
                rows.extend(_row(session, node) for node in session.chosen)
        if not complete:
            return
        self._limit_vocabulary(output.logits, complete)
        width = max(session.opening.tree_width for session, _, _ in complete)
        token_ids, log_probs = self._roster.sampler.propose(output.logits, rows, width)
        duration = time.monotonic() - started
        for session, nodes, first_row in complete:
            if session.draft_seconds == 0.0:
                session.drafting_since_ns = started_ns
            session.draft_seconds += duration
            num_children = session.opening.tree_width
            for row, node in enumerate(nodes, first_row):
                session.state.expand(node, token_ids[row][:num_children], log_probs[row][:num_children])

    def _limit_vocabulary(self, logits: Tensor, complete: Sequence[tuple[Drafting, list[Node], int]]) -> None:
        """Keeps proposals within the target's vocabulary, which may be padded less than the draft's."""
        for session, nodes, first_row in complete:
            if session.opening.vocab_size < self._roster.engine.vocab_size:
                logits[first_row : first_row + len(nodes), session.opening.vocab_size :] = float("-inf")

    def _send_if_due(self, session: Drafting, now: float) -> None:
        idle = not session.chosen
        gathered = now - session.last_sent >= COALESCE_SHARE * session.verify_seconds
        if not (idle or gathered or session.verifier_starves):
            return
        window = session.state.take_window(session.draft_seconds * 1000.0)
        if window is None:
            return
        session.outbox.put(window, session.drafting_since_ns, time.time_ns())
        session.last_sent = now
        session.draft_seconds = 0.0
        session.verifier_starves = False


def _job(session: Drafting, nodes: Sequence[Node]) -> Job:
    assert session.slot is not None
    root = session.state.tree.root
    path_nodes = paths_to(nodes, root)
    index_of = {id(root): LINE_END} | {id(node): index for index, node in enumerate(path_nodes)}
    return Job(
        slot=session.slot,
        line=session.state.line.token_ids,
        parents=[index_of[id(node.parent)] for node in path_nodes],
        token_ids=[node.token_id for node in path_nodes],
        wanted=[index_of[id(node)] for node in nodes],
    )


def _row(session: Drafting, node: Node) -> Row:
    assert session.slot is not None
    path: list[int] = []
    ancestor, root = node, session.state.tree.root
    while ancestor is not root:
        path.append(ancestor.token_id)
        assert ancestor.parent is not None
        ancestor = ancestor.parent
    return Row(session.slot.index, node.position + 1, tuple(reversed(path)))
