"""What a generation needs of its workers: a session at a verifier, one at a drafter, and somebody who opens them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from typing import Protocol, TypeVar

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

OutcomeT = TypeVar("OutcomeT")


class Worker(Protocol):
    """Whoever is at the other end: told apart by identity, named to people by its address."""

    address: str


class VerifierLink(Protocol):
    """One session at a verifier."""

    @property
    def worker(self) -> Worker:
        """The verifier."""
        ...

    @property
    def draft_model(self) -> str:
        """Name of the model with which the verifier drafts for itself; empty if it does not."""
        ...

    @property
    def has_decided(self) -> bool:
        """Whether a verdict has come."""
        ...

    @property
    def is_handed_over(self) -> bool:
        """Whether it ended there because the verifier is about to stop, so that another one may take the session."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether a command may be offered; not while too many wait."""
        ...

    async def room(self) -> None:
        """Waits for it."""
        ...

    def offer(self, command: VerifyCommand) -> None:
        """Sends a command, without waiting. When the session is over, `outcomes` tells how."""
        ...

    def outcomes(
        self, take: Callable[[Opened | Verdict | VerifyFinished], OutcomeT | None]
    ) -> AsyncGenerator[OutcomeT]:
        """Yields what `take` makes of each event, as soon as it comes, unless that is None.

        Raises OutriderError when the verifier refuses, fails, or ends the session by itself, and what `take` raises.
        """
        ...

    def leave(self) -> None:
        """Nothing more is to be heard of the session: `outcomes` ends behind what has come of it."""
        ...

    def distrust(self, reason: str) -> None:
        """The verifier said what cannot be true: until it restarts it gets no session any more."""
        ...

    def close(self) -> None:
        """Ends the session; the verifier frees its slot. Calling it twice is harmless."""
        ...


class DrafterLink(Protocol):
    """One session at a drafter."""

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

    @property
    def is_handed_over(self) -> bool:
        """Whether it ended there because the drafter is about to stop, and another one may take the session."""
        ...

    def send(self, commitment: Commitment) -> None:
        """Tells what was committed, without waiting. A drafter that does not read is given up."""
        ...

    def outcomes(self, take: Callable[[DraftWindow], OutcomeT | None]) -> AsyncGenerator[OutcomeT]:
        """Yields what `take` makes of each window, as soon as it comes, unless that is None.

        Raises OutriderError when the drafter refuses, fails, or ends the session by itself.
        """
        ...

    def close(self, *, failed: bool) -> None:
        """Ends the session; the drafter frees its slot. `failed` says that it is the drafter's fault.

        Calling it twice is harmless.
        """
        ...


class Links(Protocol):
    """Opens sessions at workers that have room."""

    def verifier(self, num_tokens: int, avoid: Collection[Worker]) -> VerifierLink:
        """A place for a session with a line of `num_tokens`, to none of those to `avoid`.

        Raises WorkerUnavailableError if no verifier is left.
        """
        ...

    def drafter(
        self, opening: DraftOpen, verifier: Worker, avoid: Collection[Worker], statistics: SpeculationStatistics
    ) -> DrafterLink:
        """A place for a session that `verifier` decides, to none of those to `avoid`.

        What changes in the session's `statistics` until it is closed tells what the drafter was worth. Raises
        WorkerUnavailableError, which says why, if no drafter is worth it.
        """
        ...
