"""The drafter: expands the most promising nodes of all its sessions, step after step. Device thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from outrider.core.drafting import DraftKnowledge, DraftSession, choose_expansions
from outrider.core.errors import ProtocolViolationError
from outrider.core.messages import Commitment, DraftOpen, Opened, Window
from outrider.core.ngram import NgramTable
from outrider.core.selection import paths_to
from outrider.core.tree import Node
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.sampling import Row
from outrider.engine.slots import Slot
from outrider.worker.outbox import Outbox
from outrider.worker.roster import Roster

DraftEvent = Opened | Window


class Drafting:
    """One session at the drafter."""

    def __init__(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> None:
        self.opening = opening
        self.outbox = outbox
        self.state: DraftSession
        """From its admission on."""
        self.slot: Slot | None = None
        self.chosen: list[Node] = []
        """The nodes that the present step expands."""
        self.has_read_prompt = False
        """Whether a step was complete: from then on its tokens are those that it expands."""
        self.finishing = False
        """Whether no more commits will come: the session ends when there is nothing left to draft."""
        self.draft_seconds = 0.0
        """Time in forward passes since the last window."""
        self.drafting_since_ns = 0
        """Wall-clock start of the first of those passes."""


class Drafter:
    """Steps all sessions that have something worth drafting in one forward pass."""

    def __init__(self, engine: Engine, ngram_table: Callable[[Sequence[int]], NgramTable] | None = None) -> None:
        """`ngram_table` makes a session's n-gram table from its line; without it the model guesses alone."""
        self._roster: Roster[Drafting] = Roster(engine)
        self._ngram_table = ngram_table
        self.session_type = DraftSession
        """What sessions that open from now on are; a benchmark may put another policy here."""
        self.knowledge = DraftKnowledge()
        """What was learned about the device and the guesses."""
        self.knowledge.curve.restart(engine.measure())

    def adopt(self, package: Path) -> None:
        """From now on runs a compiled forward pass; what was learned of the time of steps is void."""
        self._roster.engine.adopt(package)
        self.knowledge.curve.restart(self._roster.engine.measure())

    def open(self, session: Drafting) -> None:
        """Gives the session a slot, or fails it."""
        if self._roster.admit(session, time.time_ns()):
            ngrams = self._ngram_table(session.opening.token_ids) if self._ngram_table is not None else None
            session.state = self.session_type(session.opening, self.knowledge, ngrams)

    def commit(self, session: Drafting, commitment: Commitment) -> None:
        """Moves the session's line and tree along; a rollback is the same movement."""
        if session.slot is None:
            return
        state = session.state
        num_before = len(state.line)
        try:
            state.commit(commitment)
            if any(not 0 <= token_id < self._roster.engine.vocab_size for token_id in commitment.token_ids):
                raise ProtocolViolationError("a committed token id is beyond the draft model's vocabulary")
        except ProtocolViolationError as violation:
            self._roster.fail(session, violation)
            return
        self._roster.sampler.commit(session.slot.index, state.line.token_ids[num_before:])

    def finish(self, session: Drafting) -> None:
        """No more commits will come: the session drafts on while that is worth it, then ends."""
        session.finishing = True

    def close(self, session: Drafting) -> None:
        """Frees the session's slot, if it still has one."""
        self._roster.dismiss(session)

    def step(self) -> float | None:
        """Sends what commits have made urgent, then expands the most promising nodes of all sessions.

        See `Worker.step`.
        """
        sessions = self._roster.sessions
        chosen = choose_expansions([session.state for session in sessions], self.knowledge.curve)
        for session, session.chosen in zip(sessions, chosen, strict=True):
            self._send_if_due(session)
        busy = [session for session in sessions if session.chosen]
        if busy:
            self._roster.run(busy, self._expand)
            for session in busy:
                self._send_if_due(session)
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
        width = max(session.state.width for session, _, _ in complete)
        token_ids, log_probs = self._roster.sampler.propose(output.logits, rows, width)
        duration = time.monotonic() - started
        for session, nodes, first_row in complete:
            if session.draft_seconds == 0.0:
                session.drafting_since_ns = started_ns
            session.draft_seconds += duration
            for row, node in enumerate(nodes, first_row):
                session.state.expand(node, token_ids[row], log_probs[row])
        if all(session.has_read_prompt for session in sessions):
            self.knowledge.curve.observe(len(rows), time.monotonic() - started)
        for session, _, _ in complete:
            session.has_read_prompt = True

    def _limit_vocabulary(self, logits: Tensor, complete: Sequence[tuple[Drafting, list[Node], int]]) -> None:
        """Keeps proposals within the target's vocabulary, which may be padded less than the draft's."""
        for session, nodes, first_row in complete:
            if session.opening.vocab_size < self._roster.engine.vocab_size:
                logits[first_row : first_row + len(nodes), session.opening.vocab_size :] = float("-inf")

    def _send_if_due(self, session: Drafting) -> None:
        now = time.monotonic()
        if session.slot is None or not session.state.is_window_due(now, idle=not session.chosen):
            return
        window = session.state.take_window(session.draft_seconds * 1000.0, now)
        if window is None:
            return
        session.outbox.put(window, session.drafting_since_ns, time.time_ns())
        session.draft_seconds = 0.0


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
