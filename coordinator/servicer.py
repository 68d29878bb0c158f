"""GenerationService on the wire: a shell over `coordinator/service.py`."""

from __future__ import annotations

import math
import sys
import time
from contextlib import aclosing

from coordinator.admission import ClientAdmission
from coordinator.service import GenerationService
from coordinator.waits import Waits
from outrider.core.protocol.errors import QueueFullError
from outrider.core.protocol.messages import TraceContext
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """The public service by gRPC."""

    def __init__(
        self,
        service: GenerationService,
        *,
        unread_seconds: float = math.inf,
        max_requests_per_client: int = sys.maxsize,
    ) -> None:
        """A client that takes nothing for `unread_seconds` is given up."""
        self._service = service
        self._unread_seconds = unread_seconds
        self._clients = ClientAdmission(max_requests_per_client)

    @rpc_errors
    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext) -> None:
        """All completions of one prompt; cancelling the call cancels them at both workers."""
        prompt, options = wire.decode_generate_request(request)
        generating = self._service.generate(prompt, options, caller=_caller(context), deadline=_deadline(context))
        address, _, _ = context.peer().rpartition(":")
        with self._clients.admitted(address), Waits(self._unread_seconds) as waits:
            async with aclosing(generating) as events:
                async for event in events:
                    await self._write(context, wire.encode_event(event), waits)

    async def _write(self, context: ServicerContext, response: pb.GenerateResponse, waits: Waits) -> None:
        """Raises QueueFullError if the client takes nothing. It is told when it reads again, and nothing waits for that
        but the call itself."""
        try:
            await waits.wait(context.write(response))
        except TimeoutError as error:
            raise QueueFullError(
                f"the client has taken nothing for {self._unread_seconds:g} s; read faster, or ask for less at a time"
            ) from error

    @rpc_errors
    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: ServicerContext
    ) -> pb.GetServerInfoResponse:
        """What is served, and whether speculation is possible at present."""
        return wire.encode_server_info(self._service.server_info())

    @rpc_errors
    async def GetTrace(self, request: pb.GetTraceRequest, context: ServicerContext) -> pb.GetTraceResponse:
        """What became of a request of the caller's."""
        return wire.encode_request_trace(await self._service.trace(request.id))


def _deadline(context: ServicerContext) -> float | None:
    """The caller's deadline on the monotonic clock, if there is one."""
    time_left = context.time_remaining()
    return None if time_left is None else time.monotonic() + time_left


def _caller(context: ServicerContext) -> TraceContext:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return TraceContext(metadata.get("traceparent", ""), metadata.get("tracestate", ""))
