"""The drafter without a model: one session's tree of guesses, and the n-gram table that they come from."""

from __future__ import annotations

import math
import time

from outrider.core.draft.session import DraftEstimates, DraftSession
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.ngram_static import StaticNgrams
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow

WINDOW_EXPANSIONS_MAX = 8
"""Most nodes expanded for one window: some 0.2 ms of guessing. The verifier may be waiting for the best guesses; those
less likely come after them."""


class NgramDrafting:
    """One session. A guess takes microseconds, so sessions need neither a device nor each other's steps."""

    def __init__(self, opening: DraftOpen, estimates: DraftEstimates, static: StaticNgrams | None) -> None:
        ngrams = NgramTable(opening.token_ids, static)
        self._session = DraftSession(opening, estimates, ngrams, ngram_log_acceptance_min=-math.inf)
        self._vocab_size = opening.vocab_size

    def commit(self, commitment: Commitment) -> None:
        """Moves line, tree and table along; a rollback is the same movement. Raises ProtocolViolationError."""
        if any(not 0 <= token_id < self._vocab_size for token_id in commitment.token_ids):
            raise ProtocolViolationError("a committed token id is beyond the target's vocabulary")
        self._session.commit(commitment)

    def draft(self) -> DraftWindow | None:
        """The next best guesses, while there is credit and anything worth guessing; None when there is not."""
        session = self._session
        started = time.monotonic()
        num_expanded, window = 0, None
        while window is None and session.best() is not None:
            session.expand(session.take(), (), ())
            num_expanded += 1
            if num_expanded % WINDOW_EXPANSIONS_MAX == 0 or session.best() is None:
                now = time.monotonic()
                window = session.take_window((now - started) * 1000.0, now)
        return window
