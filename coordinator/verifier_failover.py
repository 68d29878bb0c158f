"""Which verifier decides a session, and which one when that has refused it or is lost."""

from __future__ import annotations

import asyncio

import structlog

from coordinator.links import Links, VerifierLink, Worker
from outrider.core.protocol.errors import (
    DamagedMessageError,
    OutriderError,
    QueueFullError,
    SlotsExhaustedError,
    UntrustedWorkerError,
    WorkerUnavailableError,
)

VERIFIERS_LOST_MAX = 3
"""How many verifiers a completion may lose and go on: a line that kills its verifier must not go through a pool."""

_REFUSALS = (SlotsExhaustedError, QueueFullError)
"""What a verifier says that has no room."""

VERIFIER_GONE = (WorkerUnavailableError, UntrustedWorkerError, DamagedMessageError, *_REFUSALS)
"""Errors after which another verifier may take the session."""

_log = structlog.get_logger()


class VerifierFailover:
    """Opens one verifier after another, and lets others wait until the present one is told of the session."""

    def __init__(self, links: Links, session_id: str) -> None:
        self._links = links
        self._session_id = session_id
        self._ready: VerifierLink | None = None
        """The present verifier, once it knows the session and everything that has been drafted."""
        self._is_settled = asyncio.Event()
        """Set while a verifier is ready, and when the session is over."""
        self._avoided: set[Worker] = set()
        """Those that have refused or been lost since the last verdict."""
        self._num_lost = 0
        self._refusal: OutriderError | None = None
        self.is_over = False
        """Whether the session is over."""

    def first(self, num_tokens: int) -> VerifierLink:
        """The first verifier, for a line of `num_tokens`. Raises WorkerUnavailableError if there is none."""
        return self._links.verifier(num_tokens, ())

    def set_ready(self, link: VerifierLink) -> None:
        """The verifier knows the session, so that windows may be sent to it."""
        self._ready = link
        self._is_settled.set()

    @property
    def present(self) -> VerifierLink | None:
        """The verifier to which windows may be sent, if there is one at present."""
        return self._ready

    async def ready(self) -> VerifierLink | None:
        """The same, once there is one and it has room; None if the session is over before."""
        while not self.is_over:
            if self._ready is None:  # it may have been lost again before this task runs
                await self._is_settled.wait()
            elif self._ready.has_room:
                break
            else:
                await self._ready.room()
        return self._ready

    def on_lost(self) -> None:
        """The present verifier has refused the session, or is lost."""
        self._ready = None
        self._is_settled.clear()

    def next(self, link: VerifierLink, num_tokens: int, error: OutriderError) -> VerifierLink:
        """The verifier for a line of `num_tokens` after `error` has ended the stream to the one before.

        Raises `error`, or an earlier refusal, if there is no other.
        """
        if link.has_decided:
            if isinstance(error, QueueFullError):  # the client is too slow, wherever the session goes
                raise error
            self._avoided.clear()
            self._refusal = None
        if not isinstance(error, DamagedMessageError):  # then it was the link, which may be opened again
            self._avoided.add(link.worker)
        if isinstance(error, _REFUSALS):
            self._refusal = self._refusal or error
        elif not link.is_handed_over:
            self._num_lost += 1
        try:
            if self._num_lost > VERIFIERS_LOST_MAX:
                raise WorkerUnavailableError(f"{VERIFIERS_LOST_MAX + 1} verifiers were lost, the last by: {error}")
            found = self._links.verifier(num_tokens, self._avoided)
        except WorkerUnavailableError as none_left:
            try:
                raise self._refusal or error from none_left
            finally:
                del error
        _log.warning(
            "verifier replaced",
            session=self._session_id,
            lost=link.worker.address,
            found=found.worker.address,
            reason=str(error),
        )
        return found

    def end(self) -> None:
        """The session is over. Nobody waits for a verifier any more."""
        self.is_over = True
        self._is_settled.set()
        # An error keeps its frames, which keep the generation, and a cancelled task keeps its error: if it stayed here,
        # prompt and tree would stay until the interpreter looks for such rings.
        self._refusal = None
