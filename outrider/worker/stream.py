"""One session's stream at a worker, as the device thread sees it."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import DraftOpen, VerifyOpen
from outrider.grammar.state import GrammarState
from outrider.worker.outbox import Outbox, Stamped

OpeningT = TypeVar("OpeningT", bound=DraftOpen | VerifyOpen)
EventT = TypeVar("EventT")


class SessionStream(Generic[OpeningT, EventT]):
    """How it was opened, and the way to its reader. A scheduler knows the session by it."""

    def __init__(self, opening: OpeningT, outbox: Outbox[EventT], grammar: GrammarState | None = None) -> None:
        """It arrives now; `grammar` has followed its line."""
        self.opening = opening
        self.outbox = outbox
        self.grammar = grammar
        self.arrived = time.monotonic()

    def tell(self, content: EventT | OutriderError | None, started_ns: int | None = None) -> None:
        """Tells the reader of an event, or of its end (None), the work behind which began at that wall-clock time."""
        self.add(content, started_ns)
        self.flush()

    def add(self, content: EventT | OutriderError | None, started_ns: int | None = None) -> None:
        """The same, but that nobody hears of it before `flush`: one message has what was added before."""
        if content is None or isinstance(content, OutriderError):
            self.outbox.add(content)
        else:
            now_ns = time.time_ns()
            self.outbox.add(Stamped(content, now_ns if started_ns is None else started_ns, now_ns))

    def flush(self) -> None:
        """Whoever reads hears of what was added."""
        self.outbox.flush()
