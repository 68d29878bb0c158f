"""The family of errors that cross a service boundary. `rpc/status.py` maps each to one gRPC status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class FieldViolation(NamedTuple):
    """One field of a request that breaks a bound."""

    field: str
    description: str


class OutriderError(Exception):
    """Base of all errors whose text may be shown to the peer: it says what to do next and names no internals."""


class InvalidRequestError(OutriderError):
    """The caller's request breaks a documented bound; sending it again changes nothing."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{field}: {description}" for field, description in violations))


class ProtocolViolationError(OutriderError):
    """The peer sent a message that the protocol does not allow at this point; its stream ends."""


class ModelMismatchError(OutriderError):
    """Draft and target cannot serve one line together."""


class UnsupportedModelError(OutriderError):
    """A model folder cannot be served; the text says why."""


class SlotsExhaustedError(OutriderError):
    """Every slot is taken; try again later or elsewhere."""


class QueueFullError(OutriderError):
    """A bounded queue is full because its reader is too slow."""


class WorkerUnavailableError(OutriderError):
    """A worker that the request needs cannot be reached; try again later."""


class UntrustedWorkerError(OutriderError):
    """A worker said what cannot be true. It is not used again before it restarts; another one may go on."""


class DamagedMessageError(OutriderError):
    """A message is not what its sender wrote: bits flipped on the way. The stream ends; another one may go on."""


class RequestTooLongError(OutriderError):
    """A request has lasted for as long as any may."""


class UnauthenticatedError(OutriderError):
    """The caller has not said who it is, or not proven it."""


class PermissionDeniedError(OutriderError):
    """The caller has proven who it is, and may not do this."""


class RateLimitError(OutriderError):
    """The caller uses all that it may at present; try again after `retry_seconds`."""

    def __init__(self, text: str, retry_seconds: int = 1) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(text)


class StepFailedError(OutriderError):
    """A forward pass failed for this session; the worker's log has the reason."""
