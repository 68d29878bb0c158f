"""What a client of a worker asks outside of sessions: who it is, whether it serves, and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.core.errors import ProtocolViolationError
from outrider.core.messages import ModelInfo
from outrider.rpc import wire
from outrider.rpc.status import error_from
from outrider.v1 import common_pb2, draft_pb2_grpc, verify_pb2, verify_pb2_grpc

TOKENIZER_BYTES_MAX = 256 * 1024 * 1024
"""Largest tokenizer.json that is taken from a worker."""


async def watch_model(channel: grpc.aio.Channel, service: str) -> AsyncIterator[ModelInfo | None]:
    """Yields the worker's ModelInfo each time it begins to serve and None each time it ceases to. Never ends.

    `service` is the worker's readiness name: outrider.v1.VerifyService or outrider.v1.DraftService. It waits on the health
    service's own stream; between connections the channel's backoff paces it.
    """
    known = False
    while True:
        try:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=service), wait_for_ready=True
            )
            async for response in watch:
                serving = response.status == health_pb2.HealthCheckResponse.SERVING
                if serving and not known:
                    known = True
                    yield await _model_info(channel, service)
                elif not serving and known:
                    known = False
                    yield None
        except grpc.aio.AioRpcError:
            if known:
                known = False
                yield None


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
    stub = (
        draft_pb2_grpc.DraftServiceStub(channel)
        if service == "outrider.v1.DraftService"
        else verify_pb2_grpc.VerifyServiceStub(channel)
    )
    return wire.decode_model_info((await stub.GetModelInfo(common_pb2.GetModelInfoRequest())).model)
