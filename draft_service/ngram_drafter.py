"""The drafter without a model: one session's tree of guesses, and the n-gram table that they come from."""

from __future__ import annotations

import time

from outrider.core.draft.session import DraftEstimates, DraftSession
from outrider.core.propose.ngram import NgramTable, path_context
from outrider.core.propose.ngram_static import StaticNgrams
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow
from outrider.core.protocol.tree import Node

WINDOW_EXPANSIONS_MAX = 8
"""Most nodes expanded for one window: some 0.2 ms of guessing. The verifier may be waiting for the best guesses; those
less likely come after them."""


class NgramDrafting:
    """One session. A guess takes microseconds, so sessions need neither a device nor each other's steps."""

    def __init__(self, opening: DraftOpen, estimates: DraftEstimates, static: StaticNgrams | None) -> None:
        self._ngrams = NgramTable(opening.token_ids, static)
        self._session = DraftSession(opening, estimates)
        self._vocab_size = opening.vocab_size

    def commit(self, commitment: Commitment) -> None:
        """Moves line, tree and table along; a rollback is the same movement. Raises ProtocolViolationError."""
        if any(not 0 <= token_id < self._vocab_size for token_id in commitment.token_ids):
            raise ProtocolViolationError("a committed token id is beyond the target's vocabulary")
        num_before = len(self._session.line)
        self._session.commit(commitment)
        self._ngrams.commit(self._session.line.token_ids[num_before:])

    def draft(self) -> DraftWindow | None:
        """The next best guesses, while there is credit and anything worth guessing; None when there is not."""
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
        context = path_context(node, self._session.tree.root, self._ngrams.context)
        probabilities = {
            token_id: probability
            for token_id, probability in self._ngrams.probabilities(context).items()
            if token_id < self._vocab_size
        }
        token_ids = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
        self._session.expand(node, token_ids, [probabilities[token_id] for token_id in token_ids])
