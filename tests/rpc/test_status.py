"""Errors cross a real gRPC connection and arrive as what they were."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status
from served import Serve

from outrider.core.protocol import errors
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
from outrider.rpc.channels import open_channel
from outrider.rpc.status import VIOLATIONS_MAX, error_from, rpc_errors
from outrider.v1 import draft_pb2_grpc
from outrider.v1.common_pb2 import GetModelInfoRequest, GetModelInfoResponse

VIOLATIONS = (FieldViolation("sampling.top_p", "must be in (0, 1]"), FieldViolation("prompt", "must not be empty"))
STATUSES = [
    (InvalidRequestError(VIOLATIONS), grpc.StatusCode.INVALID_ARGUMENT),
    (ProtocolViolationError("open comes first"), grpc.StatusCode.FAILED_PRECONDITION),
    (ModelMismatchError("vocabularies differ"), grpc.StatusCode.FAILED_PRECONDITION),
    (UnsupportedModelError("state-space models are not supported"), grpc.StatusCode.FAILED_PRECONDITION),
    (SlotsExhaustedError("all 4 slots are taken"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (QueueFullError("64 events wait"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (WorkerUnavailableError("no verifier"), grpc.StatusCode.UNAVAILABLE),
    (UnauthenticatedError("send a token"), grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError("no such name may call"), grpc.StatusCode.PERMISSION_DENIED),
    (RateLimitError("10 tokens a minute"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UntrustedWorkerError("a verdict has 9 tokens"), grpc.StatusCode.UNAVAILABLE),
    (DamagedMessageError("bits flipped"), grpc.StatusCode.DATA_LOSS),
    (RequestTooLongError("an hour has passed"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (StepFailedError("the step failed"), grpc.StatusCode.INTERNAL),
]
RETRYABLE = {
    SlotsExhaustedError,
    QueueFullError,
    WorkerUnavailableError,
    RateLimitError,
    UntrustedWorkerError,
    DamagedMessageError,
}


class Raising(draft_pb2_grpc.DraftServiceServicer):
    """Raises what it was given."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    @rpc_errors
    async def GetModelInfo(self, request: GetModelInfoRequest, context: Any) -> GetModelInfoResponse:
        raise self._error


async def refusal(serve: Serve, error: BaseException) -> grpc.aio.AioRpcError:
    served = await serve(Raising(error))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        # A port may be one that a server of before has left: its channel is not to fail for that.
        await served.stub.GetModelInfo(GetModelInfoRequest(), wait_for_ready=True)
    return caught.value


def test_every_error_has_a_status() -> None:
    family = {each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, OutriderError)}
    assert family - {OutriderError} == {type(error) for error, _ in STATUSES}


@pytest.mark.parametrize(("error", "code"), STATUSES, ids=lambda value: type(value).__name__)
async def test_an_error_arrives_as_what_it_was(serve: Serve, error: OutriderError, code: grpc.StatusCode) -> None:
    failure = await refusal(serve, error)
    assert failure.code() is code
    assert failure.details() == str(error)
    received = error_from(failure)
    assert type(received) is type(error)
    assert str(received) == str(error)


@pytest.mark.parametrize("error", [error for error, _ in STATUSES], ids=lambda error: type(error).__name__)
async def test_details_are_those_that_any_grpc_library_reads(serve: Serve, error: OutriderError) -> None:
    status = rpc_status.from_call(await refusal(serve, error))
    info, retry, bad_request = ErrorInfo(), RetryInfo(), BadRequest()
    unpacked = [detail.Unpack(info) or detail.Unpack(retry) or detail.Unpack(bad_request) for detail in status.details]
    assert all(unpacked)
    assert info.domain == "outrider"
    assert info.reason
    assert (retry.retry_delay.seconds > 0) == (type(error) in RETRYABLE)
    expected = VIOLATIONS if isinstance(error, InvalidRequestError) else ()
    assert [(each.field, each.description) for each in bad_request.field_violations] == list(expected)


async def test_violations_are_read_back(serve: Serve) -> None:
    received = error_from(await refusal(serve, InvalidRequestError(VIOLATIONS)))
    assert isinstance(received, InvalidRequestError)
    assert received.violations == VIOLATIONS


async def test_a_flood_of_violations_still_fits_into_the_trailers(serve: Serve) -> None:
    flood = [FieldViolation(f"sampling.logit_bias[{'9' * 5000}{i}]", "ü" * 5000) for i in range(1000)]
    failure = await refusal(serve, InvalidRequestError(flood))
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    received = error_from(failure)
    assert isinstance(received, InvalidRequestError)
    assert len(received.violations) == VIOLATIONS_MAX


@pytest.mark.parametrize(
    "error",
    [ValueError("secret /srv/models"), asyncio.CancelledError("secret"), ExceptionGroup("", [KeyError("secret")])],
)
async def test_an_unexpected_error_tells_the_log_and_not_the_peer(
    serve: Serve, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "outrider"):
        failure = await refusal(serve, error)
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in repr(failure)
    assert isinstance(error_from(failure), StepFailedError)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_the_outrider_error_in_a_group_decides(serve: Serve) -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [SlotsExhaustedError("all 4 slots are taken")])])
    assert isinstance(error_from(await refusal(serve, group)), SlotsExhaustedError)


async def test_a_message_that_is_no_protobuf_is_a_protocol_violation(serve: Serve) -> None:
    class Reading(draft_pb2_grpc.DraftServiceServicer):
        @rpc_errors
        async def Draft(self, request_iterator: object, context: Any) -> None:
            await context.read()

    served = await serve(Reading())
    call = served.channel.stream_stream("/outrider.v1.DraftService/Draft")()
    await call.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert isinstance(error_from(caught.value), ProtocolViolationError)


async def test_a_dead_address_is_an_unavailable_worker() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await draft_pb2_grpc.DraftServiceStub(channel).GetModelInfo(GetModelInfoRequest())
    received = error_from(caught.value)
    assert isinstance(received, WorkerUnavailableError)
    assert "127.0.0.1" not in str(received)


async def test_a_method_that_is_not_there_is_a_protocol_violation(serve: Serve) -> None:
    served = await serve(Raising(ValueError()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary("/outrider.v1.DraftService/Fly")(b"")
    assert isinstance(error_from(caught.value), ProtocolViolationError)


@pytest.mark.parametrize("details", [b"", b"\xff\xff", b"\x08\x03"])
def test_a_foreign_status_is_read_without_harm(details: bytes) -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", details))
    failure = grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), trailers, "at 10.0.0.1")
    received = error_from(failure)
    assert isinstance(received, WorkerUnavailableError)
    assert "10.0.0.1" not in str(received)
