"""The one table between Outrider's errors and gRPC statuses, and the way there and back."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from outrider.core.protocol.errors import (
    DamagedMessageError,
    FieldViolation,
    InvalidRequestError,
    ModelMismatchError,
    OutriderError,
    PermissionDeniedError,
    ProtocolViolationError,
    QueueFullError,
    RateLimitError,
    RequestTooLongError,
    SlotsExhaustedError,
    StepFailedError,
    UnauthenticatedError,
    UnsupportedModelError,
    UntrustedWorkerError,
    WorkerUnavailableError,
)
from outrider.core.protocol.printable import uncontrolled

S = TypeVar("S")
Q = TypeVar("Q")
R = TypeVar("R")
ServicerContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = Callable[[S, Q, ServicerContext], Coroutine[Any, Any, R]]

ERROR_DOMAIN: Final = "outrider"
"""The `domain` of every ErrorInfo that Outrider sends."""

MESSAGE_TEXT_BYTES_MAX: Final = 512
"""Most bytes of a status message. All of a status travels in HTTP/2 trailers, which gRPC cuts off at 8 KiB."""

VIOLATIONS_MAX: Final = 8
"""Most field violations in one status."""

VIOLATION_TEXT_BYTES_MAX: Final = 192
"""Most bytes of a field violation's name, and of its description."""

_DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata key that every gRPC library knows for a serialized google.rpc.Status."""

_RETRY_SECONDS: Final = 1
"""How long a caller is asked to wait before it tries again: in the order of a short generation."""

_UNEXPECTED_TEXT: Final = "something went wrong inside the service; its log has the reason"
_LOST_TEXT: Final = "the service cannot be reached or the connection to it broke; check its address and try again"

_OVERSIZED_DETAILS: Final = "CLIENT: Received message larger than max"
"""In the details where gRPC has refused a message that the peer sent, unread."""

_log = logging.getLogger(__name__)


class _Row(NamedTuple):
    code: grpc.StatusCode
    reason: str
    """`ErrorInfo.reason`; tells errors with one code apart."""
    retry: bool = False
    """Whether the same request may succeed later; RetryInfo says so."""


_TABLE: Final[Mapping[type[OutriderError], _Row]] = {
    InvalidRequestError: _Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    # Not INVALID_ARGUMENT: whether a stream message is allowed depends on those before it. Sending it again on this
    # stream is useless, opening a new stream is not.
    ProtocolViolationError: _Row(grpc.StatusCode.FAILED_PRECONDITION, "PROTOCOL_VIOLATION"),
    ModelMismatchError: _Row(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH"),
    UnsupportedModelError: _Row(grpc.StatusCode.FAILED_PRECONDITION, "UNSUPPORTED_MODEL"),
    SlotsExhaustedError: _Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOTS_EXHAUSTED", retry=True),
    QueueFullError: _Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry=True),
    WorkerUnavailableError: _Row(grpc.StatusCode.UNAVAILABLE, "WORKER_UNAVAILABLE", retry=True),
    UntrustedWorkerError: _Row(grpc.StatusCode.UNAVAILABLE, "WORKER_UNTRUSTED", retry=True),
    DamagedMessageError: _Row(grpc.StatusCode.DATA_LOSS, "DAMAGED_MESSAGE", retry=True),
    RequestTooLongError: _Row(grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_LONG"),
    UnauthenticatedError: _Row(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    PermissionDeniedError: _Row(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    RateLimitError: _Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMIT", retry=True),
    StepFailedError: _Row(grpc.StatusCode.INTERNAL, "STEP_FAILED"),
}

_CODES: Final = {int(code.value[0]): code for code in grpc.StatusCode}

_UNEXPECTED: Final = _Row(grpc.StatusCode.INTERNAL, "UNEXPECTED")
"""Every error that is not in the table."""

_BY_REASON: Final[Mapping[str, type[OutriderError]]] = {
    _UNEXPECTED.reason: StepFailedError,
    **{row.reason: error_type for error_type, row in _TABLE.items()},
}

_BY_CODE: Final[Mapping[grpc.StatusCode, tuple[type[OutriderError], str]]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        SlotsExhaustedError,
        "the service has no room for another call, or the message was too large; try again later, or send less",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        ProtocolViolationError,
        "the service does not offer this call; check that the address is that of the right service, in this version",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (WorkerUnavailableError, "the service did not answer in time; try again later"),
}
"""What those statuses mean that gRPC makes by itself. Any other one means that the connection is lost."""

_BROKEN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    }
)
"""What gRPC makes by itself of a connection that broke, a stream that was reset, or a server that stopped. A call that
the caller cancels has no status."""


async def abort(context: ServicerContext, error: BaseException) -> NoReturn:
    """Ends an RPC with the status of `error`, or of the first OutriderError in an exception group.

    An error that is not in the table ends it with INTERNAL and a fixed text and goes to the log with its traceback: the
    peer sees no text that was not written for it. Raises grpc.aio.AbortError, or asyncio.CancelledError if the peer has
    left.
    """
    error = _leading(error)
    # InternalError is a read or write that gRPC refused. If the peer has left, it means no more than that.
    refused = isinstance(error, grpc.aio.InternalError)
    if not refused:
        log_unexpected(error)
        # gRPC's record of the RPC keeps the abort and what led to it, with all that its frames hold; and they hold the
        # record, so that it would all stay until the interpreter looks for such rings.
        error.__traceback__ = error.__cause__ = error.__context__ = None
    status = _status(error)
    try:
        await context.abort(_CODES[status.code], status.message, ((_DETAILS_KEY, status.SerializeToString()),))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from error
    except grpc.aio.AbortError:
        if refused:
            _log.error("gRPC refused a read or write of a peer that is still there", exc_info=error)
        raise


class Told(NamedTuple):
    """What a peer is told of an error, by whichever door it came."""

    code: grpc.StatusCode
    reason: str
    """`ErrorInfo.reason`; tells errors with one code apart."""
    text: str
    """Fixed for an error that is not in the table: the peer sees no text that was not written for it."""
    retry_seconds: int | None
    """After which the same request may succeed; None if it will not."""


def told(error: BaseException) -> Told:
    """What is told of `error`, or of the first OutriderError in an exception group."""
    error = _leading(error)
    row = _TABLE.get(type(error), _UNEXPECTED) if isinstance(error, OutriderError) else _UNEXPECTED
    text = _UNEXPECTED_TEXT if row is _UNEXPECTED else str(error)
    retry_seconds = error.retry_seconds if isinstance(error, RateLimitError) else _RETRY_SECONDS
    return Told(row.code, row.reason, text, retry_seconds if row.retry else None)


def shown_violations(error: InvalidRequestError) -> list[FieldViolation]:
    """Those that a peer is told of, within the bounds."""
    return [
        FieldViolation(clipped(field, VIOLATION_TEXT_BYTES_MAX), clipped(description, VIOLATION_TEXT_BYTES_MAX))
        for field, description in error.violations[:VIOLATIONS_MAX]
    ]


def log_unexpected(error: BaseException) -> None:
    """Has the log tell of an error that is not in the table: the peer sees no text that was not written for it."""
    if type(error) not in _TABLE:
        _log.error("unexpected error in an RPC handler", exc_info=error)


def rpc_errors(handler: Handler[S, Q, R]) -> Handler[S, Q, R]:
    """Decorates a servicer's coroutine method, be it unary or streaming by `context.read` and `context.write`: what it
    raises becomes the status of the RPC, by `abort`.

    Without it gRPC would send the text of any exception to the peer. And it would never answer at all when a
    CancelledError comes from something other than the RPC's own end, such as a cancelled task that the method awaits.
    """

    @functools.wraps(handler)
    async def guarded(servicer: S, request: Q, context: ServicerContext) -> R:
        try:
            return await handler(servicer, request, context)
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError as error:
            if own_task_is_cancelled():
                raise
            await abort(context, error)
        except DecodeError:
            await abort(context, undecodable())
        except Exception as error:
            await abort(context, error)

    return guarded


def undecodable() -> ProtocolViolationError:
    """What a message of a stream that is no protobuf message of its type ends in."""
    return ProtocolViolationError("a message of the stream cannot be parsed as its protobuf type")


def own_task_is_cancelled() -> bool:
    """Whether a CancelledError at hand means this task, rather than something that it awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def error_from(rpc_error: grpc.aio.AioRpcError) -> OutriderError:
    """The error that a failed call stands for: of the class that the peer raised, with its text.

    A status without Outrider's ErrorInfo was made by gRPC. It gets a text of ours, because gRPC's names addresses and
    internals and errors of this family may be shown to anybody; raise it `from rpc_error` to keep those for the log.
    """
    status = _received_status(rpc_error)
    info, bad_request = ErrorInfo(), BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
    if info.domain == ERROR_DOMAIN:
        violations = [FieldViolation(each.field, each.description) for each in bad_request.field_violations]
        error = named_error(info.reason, status.message, violations)
        if error is not None:
            return error
    if _OVERSIZED_DETAILS in (rpc_error.details() or ""):
        return UntrustedWorkerError("a message of the service exceeds every bound of the protocol; restart the service")
    error_type, text = _BY_CODE.get(rpc_error.code(), (WorkerUnavailableError, _LOST_TEXT))
    return error_type(text)


def named_error(reason: str, text: str, violations: Sequence[FieldViolation]) -> OutriderError | None:
    """The error of a peer that gave it this `ErrorInfo.reason`; None if there is no such reason.

    A peer's text is shown in terminals, too: it loses its control characters.
    """
    error_type = _BY_REASON.get(reason)
    if error_type is None:
        return None
    message = uncontrolled(text)
    if issubclass(error_type, InvalidRequestError):
        shown = [FieldViolation(uncontrolled(field), uncontrolled(description)) for field, description in violations]
        return InvalidRequestError(shown or [FieldViolation("request", message)])
    return error_type(message)


def retry_seconds(rpc_error: grpc.aio.AioRpcError) -> float | None:
    """After how long a failed call may be made again, there or elsewhere; None if it would fail again.

    The peer says it. Where gRPC made the status it is 0 if the connection broke or the peer stopped.
    """
    status = _received_status(rpc_error)
    info, retry = ErrorInfo(), RetryInfo()
    found = [detail.Unpack(retry) for detail in status.details if not detail.Unpack(info)]
    if info.domain == ERROR_DOMAIN:
        return max(retry.retry_delay.ToTimedelta().total_seconds(), 0.0) if any(found) else None
    if rpc_error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return float(_RETRY_SECONDS)
    return 0.0 if rpc_error.code() in _BROKEN else None


def _status(error: BaseException) -> Status:
    code, reason, text, retry_seconds = told(error)
    status = Status(code=code.value[0], message=clipped(text, MESSAGE_TEXT_BYTES_MAX))
    status.details.add().Pack(ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    if isinstance(error, InvalidRequestError):
        violations = [
            BadRequest.FieldViolation(field=field, description=description)
            for field, description in shown_violations(error)
        ]
        status.details.add().Pack(BadRequest(field_violations=violations))
    if retry_seconds is not None:
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=retry_seconds)))
    return status


def _received_status(rpc_error: grpc.aio.AioRpcError) -> Status:
    """The peer's google.rpc.Status; an empty one if it sent none, or none that makes sense."""
    for key, value in rpc_error.trailing_metadata():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _leading(error: BaseException) -> BaseException:
    """The error to answer with: in an exception group the first OutriderError at any depth, if there is one."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    leaves = [_leading(each) for each in group.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, OutriderError)), group)


def clipped(text: str, num_bytes_max: int) -> str:
    """At most so many bytes of a text; an ellipsis says where it was cut off."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= num_bytes_max:
        return text
    return encoded[: num_bytes_max - len("…".encode())].decode(errors="ignore") + "…"
