"""What a client of a worker asks outside of sessions: who it is, whether it serves, and its tokenizer."""

# The generated stubs and grpcio's companions have no types of their own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.rpc import wire
from outrider.rpc.status import error_from
from outrider.v1 import common_pb2, draft_pb2_grpc, verify_pb2, verify_pb2_grpc

DRAFT_SERVICE = "outrider.v1.DraftService"
"""Full name of the draft service; health answers for its readiness under it."""
VERIFY_SERVICE = "outrider.v1.VerifyService"
"""Full name of the verify service."""

TOKENIZER_BYTES_MAX = 256 * 1024 * 1024
"""Largest tokenizer.json that is taken from a worker."""


async def watch_model(channel: grpc.aio.Channel, service: str) -> AsyncIterator[ModelInfo | None]:
    """Yields the worker's ModelInfo each time it begins to serve and None each time it ceases to. Never ends by itself.

    The first answer comes at once: None if the worker cannot be reached or is still loading. `service` is the worker's
    name, VERIFY_SERVICE or DRAFT_SERVICE. It waits on the health service's own stream;
    between connections the channel's backoff paces it. Raises OutriderError if what answers is no such worker.
    """
    serving: bool | None = None
    while True:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=service), wait_for_ready=serving is not None
        )
        try:
            async for response in watch:
                now_serving = response.status == health_pb2.HealthCheckResponse.SERVING
                if now_serving != serving:
                    serving = now_serving
                    yield await _model_info(channel, service) if serving else None
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise error_from(error) from error
        if serving is not False:
            serving = False
            yield None


async def watch_load(channel: grpc.aio.Channel, service: str) -> AsyncIterator[WorkerLoad]:
    """Yields how busy a worker is, at once and at each change, until the worker ends the stream.

    Raises OutriderError for any other end.
    """
    try:
        async for response in _stub(channel, service).GetLoad(common_pb2.GetLoadRequest()):
            yield wire.decode_load(response)
    except grpc.aio.AioRpcError as error:
        raise error_from(error) from error


async def until_reconnected(channel: grpc.aio.Channel) -> None:
    """Waits until the present connection has ended and another stands: then another process may answer."""
    state = channel.get_state(try_to_connect=True)
    while state is grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def fetch_tokenizer(channel: grpc.aio.Channel) -> bytes:
    """The target's tokenizer.json. Raises OutriderError."""
    content = bytearray()
    expected = ""
    try:
        async for response in verify_pb2_grpc.VerifyServiceStub(channel).GetTokenizer(verify_pb2.GetTokenizerRequest()):
            expected = expected or response.sha256
            content += response.chunk
            if len(content) > TOKENIZER_BYTES_MAX:
                raise ProtocolViolationError(f"the worker's tokenizer exceeds {TOKENIZER_BYTES_MAX} bytes")
    except grpc.aio.AioRpcError as error:
        raise error_from(error) from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise ProtocolViolationError("the worker's tokenizer arrived damaged; restart the verify service")
    return bytes(content)


async def _model_info(channel: grpc.aio.Channel, service: str) -> ModelInfo:
    return wire.decode_model_info((await _stub(channel, service).GetModelInfo(common_pb2.GetModelInfoRequest())).model)


def _stub(channel: grpc.aio.Channel, service: str) -> Any:
    if service == DRAFT_SERVICE:
        return draft_pb2_grpc.DraftServiceStub(channel)
    return verify_pb2_grpc.VerifyServiceStub(channel)
