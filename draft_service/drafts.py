"""What a draft service needs of whoever drafts: the one door for drafters with a model and without."""

from __future__ import annotations

from typing import Protocol, TypeVar

from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.worker.outbox import Outbox

DraftEvent = Opened | DraftWindow

SessionT = TypeVar("SessionT")


class Drafts(Protocol[SessionT]):
    """Who drafts for the sessions of a service, with a model or without. Called on the event loop, and never waits.

    What comes of a session, its failure too, goes to its outbox.
    """

    def open(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> SessionT:
        """Begins a session. `opening` has been checked. May raise an OutriderError that refuses it."""
        ...

    def commit(self, session: SessionT, commitment: Commitment) -> None:
        """Moves the session's line and tree along. May raise ProtocolViolationError, which ends the session."""
        ...

    def finish(self, session: SessionT) -> None:
        """No more commits will come: the session drafts what its credit allows, then ends its outbox."""
        ...

    def close(self, session: SessionT) -> None:
        """Gives the session's room back. Called once for each that was opened, however it ended."""
        ...
