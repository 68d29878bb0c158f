"""What a generation needs of its workers: a stream to a verifier, one to a drafter, and somebody who opens them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Protocol

from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.messages import (
    Commitment,
    DraftOpen,
    DraftWindow,
    Opened,
    Verdict,
    VerifyCommand,
    VerifyFinished,
)


class Worker(Protocol):
    """Whoever is at the other end: told apart by identity, named to people by its address."""

    address: str


class VerifierLink(Protocol):
    """One session's stream to a verifier."""

    @property
    def worker(self) -> Worker:
        """The verifier."""
        ...

    @property
    def has_decided(self) -> bool:
        """Whether a verdict has come."""
        ...

    @property
    def is_handed_over(self) -> bool:
        """Whether the stream ended because the verifier is about to stop, so that another one may take the session."""
        ...

    async def send(self, command: VerifyCommand) -> None:
        """Writes a command, waiting for flow control; one task at a time. If the stream is over, `events` tells how."""
        ...

    def events(self) -> AsyncIterator[Opened | Verdict | VerifyFinished]:
        """What the verifier says. Raises OutriderError when it refuses, fails, or ends the stream by itself."""
        ...

    def distrust(self, reason: str) -> None:
        """The verifier said what cannot be true: until it restarts it gets no session any more."""
        ...

    def close(self) -> None:
        """Ends the stream; the verifier frees its slot. Calling it twice is harmless."""
        ...


class DrafterLink(Protocol):
    """One session's stream to a drafter."""

    @property
    def worker(self) -> Worker:
        """The drafter."""
        ...

    @property
    def model_name(self) -> str:
        """What it drafts with."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether the drafter has taken the session."""
        ...

    def send(self, commitment: Commitment) -> None:
        """Tells what was committed, without waiting. A drafter that does not read is given up."""
        ...

    def windows(self) -> AsyncGenerator[DraftWindow]:
        """Opens the session and yields what the drafter sends.

        Raises OutriderError when the drafter refuses, fails, or ends the stream by itself.
        """
        ...

    def close(self, *, failed: bool) -> None:
        """Ends the stream; the drafter frees its slot. `failed` says that it is the drafter's fault.

        Calling it twice is harmless.
        """
        ...


class Links(Protocol):
    """Opens streams to workers that have room."""

    def verifier(self, num_tokens: int, avoid: Collection[Worker]) -> VerifierLink:
        """A stream for a session with a line of `num_tokens`, to none of those to `avoid`.

        Raises WorkerUnavailableError if no verifier is left.
        """
        ...

    def drafter(
        self, opening: DraftOpen, verifier: Worker, avoid: Collection[Worker], statistics: SpeculationStatistics
    ) -> DrafterLink:
        """A stream for a session that `verifier` decides, to none of those to `avoid`.

        What changes in the session's `statistics` until it is closed tells what the drafter was worth. Raises
        WorkerUnavailableError, which says why, if no drafter is worth it.
        """
        ...
