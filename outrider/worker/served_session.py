"""A session as a worker's service serves it: what the host of its stream asks of it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from outrider.core.protocol.errors import ProtocolViolationError
from outrider.worker.outbox import Stamped

CommandT = TypeVar("CommandT", contravariant=True)
EventT = TypeVar("EventT")


class ServedSession(Protocol[CommandT, EventT]):
    """Called on the event loop, and never waits. What comes of it goes to the outbox that it was opened with."""

    def take(self, command: CommandT) -> None:
        """Obeys a command. May raise an OutriderError, which ends the session."""
        ...

    def finish(self) -> None:
        """No more commands will come: the session goes on to its own end. May raise an OutriderError, too."""
        ...

    def record(self, stamped: Stamped[EventT]) -> None:
        """The peer is about to hear of an event: before it does, since it may leave at once."""
        ...

    def close(self, error: BaseException | None) -> None:
        """The session is over, because of `error` if there is one; its room is free. Called once."""
        ...


def reopened() -> ProtocolViolationError:
    """What a second `open` of one session ends in."""
    return ProtocolViolationError("`open` was sent already; give another session another number")
