"""The drafter without a model: it guesses from what the text repeats, on the event loop, a window at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from draft_service.drafts import DraftEvent
from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.session import DraftSession
from outrider.core.estimate.confidence import NGRAM_PROBABILITIES, ngram_bin
from outrider.core.propose.lookup import Ngrams, PromptLookup
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.errors import ProtocolViolationError, SlotsExhaustedError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened, WorkerLoad
from outrider.core.protocol.tree import Node
from outrider.worker.outbox import Outbox

WINDOW_EXPANSIONS_MAX = 8
"""Most nodes expanded for one window: some 0.2 ms of guessing. The verifier may be waiting for the best guesses; those
less likely come after them."""


class NgramDrafting:
    """One session. A guess takes microseconds, so sessions need neither a device nor each other's steps."""

    def __init__(self, opening: DraftOpen, estimates: DraftEstimates, ngrams: Ngrams) -> None:
        """`ngrams` is an empty table."""
        self._session = DraftSession(opening, estimates)
        self._proposer = PromptLookup(ngrams, self._session.line)
        self._vocab_size = opening.vocab_size

    def commit(self, commitment: Commitment) -> None:
        """Moves line, tree and table along; a rollback is the same movement. Raises ProtocolViolationError."""
        if any(not 0 <= token_id < self._vocab_size for token_id in commitment.token_ids):
            raise ProtocolViolationError("a committed token id is beyond the target's vocabulary")
        num_before = len(self._session.line)
        self._session.commit(commitment)
        self._proposer.commit(self._session.line.token_ids[num_before:])

    def prepare(self) -> bool:
        """Reads some of a long line, for a millisecond at most. Returns whether there is none left to read."""
        return self._proposer.prepare()

    def draft(self) -> DraftWindow | None:
        """After `prepare`: the next best guesses, while there is credit and anything worth guessing; None when not."""
        session = self._session
        started = time.monotonic()
        num_expanded, window = 0, None
        while window is None and session.best() is not None:
            self._expand(session.take())
            num_expanded += 1
            if num_expanded % WINDOW_EXPANSIONS_MAX == 0 or session.best() is None:
                now = time.monotonic()
                window = session.take_window((now - started) * 1000.0, now)
        return window

    def _expand(self, node: Node) -> None:
        proposed = self._proposer.propose(self._session.tree.root, node)
        probabilities = {token_id: each for token_id, each in proposed.items() if token_id < self._vocab_size}
        token_ids = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
        self._session.expand(node, token_ids, [probabilities[token_id] for token_id in token_ids])


class _Streamed:
    """A session with the way to its stream."""

    def __init__(self, drafting: NgramDrafting, outbox: Outbox[DraftEvent]) -> None:
        self.drafting = drafting
        self.outbox = outbox
        self.is_due = False
        """Whether it stands in the queue of those that may have something to draft."""
        self.is_finishing = self.is_closed = False

    def draft(self) -> bool:
        """Sends the next window, if there is one. Returns whether to ask again before anything is committed."""
        if not self.drafting.prepare():
            return True
        started_ns = time.time_ns()
        window = self.drafting.draft()
        if window is not None:
            self.outbox.put(window, started_ns, time.time_ns())
        elif self.is_finishing:
            self.outbox.end()
        return window is not None


class NgramDrafter:
    """Drafts for all sessions in turn; see `Drafts`. The event loop reads and writes between any two windows."""

    def __init__(self, instance_id: str, max_sessions: int, ngram_table: Callable[[], Ngrams] = NgramTable) -> None:
        """`ngram_table` makes a session's table, empty."""
        self._instance_id = instance_id
        self._max_sessions = max_sessions
        self._ngram_table = ngram_table
        self._estimates = DraftEstimates(NGRAM_PROBABILITIES, ngram_bin)
        self._num_sessions = 0
        self._due: deque[_Streamed] = deque()
        self.on_change: Callable[[], None] = lambda: None
        """Called when `load` has changed."""

    def load(self) -> WorkerLoad:
        """It keeps no keys and values, and nothing that is to be read waits."""
        return WorkerLoad(
            instance_id=self._instance_id,
            num_sessions=self._num_sessions,
            num_queued=0,
            num_queued_tokens=0,
            num_kv_tokens=0,
            num_free_kv_tokens=0,
            step_ms=0.0,
        )

    def open(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> _Streamed:
        """See `Drafts.open`. Raises SlotsExhaustedError."""
        if self._num_sessions >= self._max_sessions:
            raise SlotsExhaustedError(
                f"all {self._max_sessions} sessions are taken; try again later or raise --max-sessions of this worker"
            )
        session = _Streamed(NgramDrafting(opening, self._estimates, self._ngram_table()), outbox)
        self._num_sessions += 1
        self.on_change()
        now_ns = time.time_ns()
        outbox.put(Opened(len(opening.token_ids)), now_ns, now_ns)
        self._queue(session)
        return session

    def commit(self, session: _Streamed, commitment: Commitment) -> None:
        """See `Drafts.commit`."""
        session.drafting.commit(commitment)
        self._queue(session)

    def finish(self, session: _Streamed) -> None:
        """See `Drafts.finish`."""
        session.is_finishing = True
        self._queue(session)

    def close(self, session: _Streamed) -> None:
        """See `Drafts.close`."""
        session.is_closed = True
        self._num_sessions -= 1
        self.on_change()

    def _queue(self, session: _Streamed) -> None:
        if session.is_due:
            return
        session.is_due = True
        self._due.append(session)
        if len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Drafts one window of the session that has waited longest."""
        session = self._due[0]
        try:
            session.is_due = not session.is_closed and session.draft()
        except Exception as failure:  # its own, and no other session's
            session.outbox.fail(failure)
            session.is_due = False
        self._due.rotate(-1)
        if not session.is_due:
            self._due.pop()
        if self._due:
            asyncio.get_running_loop().call_soon(self._step)
