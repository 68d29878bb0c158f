"""GenerationService on the wire: a shell over `coordinator/service.py`."""

from __future__ import annotations

import time
from contextlib import aclosing

from coordinator.service import GenerationService
from outrider.core.protocol.messages import TraceContext
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The public service by gRPC."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service

    @rpc_errors
    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> None:
        """All completions of one prompt; cancelling the call cancels them at both workers."""
        prompt, options = wire.decode_generate_request(request)
        generating = self._service.generate(prompt, options, caller=_caller(context), deadline=_deadline(context))
        async with aclosing(generating) as events:
            async for event in events:
                await context.write(wire.encode_event(event))

    @rpc_errors
    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: ServicerContext
    ) -> pb.GetServerInfoResponse:
        """What is served, and whether speculation is possible at present."""
        return wire.encode_server_info(self._service.server_info())


def _deadline(context: ServicerContext) -> float | None:
    """The caller's deadline on the monotonic clock, if there is one."""
    time_left = context.time_remaining()
    return None if time_left is None else time.monotonic() + time_left


def _caller(context: ServicerContext) -> TraceContext:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return TraceContext(metadata.get("traceparent", ""), metadata.get("tracestate", ""))
