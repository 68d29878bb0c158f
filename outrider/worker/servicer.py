"""What all workers' services have in common on the wire: what they serve, how busy they are, streams of sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, ClassVar, TypeVar

from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.stream_kind import StreamKind
from outrider.telemetry.setup import Telemetry
from outrider.v1 import common_pb2
from outrider.worker.load import LoadBoard
from outrider.worker.outbox import Outbox
from outrider.worker.served_session import ServedSession
from outrider.worker.session_host import SessionHost

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")


class ModelServicer:
    """A service over one model, from the moment that it is loaded. Needs no torch."""

    NAME: ClassVar[str]
    """What the service is called in sentences."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._info: ModelInfo | None = None
        self._board: LoadBoard
        self._hosts: set[SessionHost[Any, Any]] = set()

    def serve(self, info: ModelInfo, read_load: Callable[[], WorkerLoad]) -> LoadBoard:
        """From now on serves the model of `info`. Returns the board that is to be told when the load changes."""
        self._board = LoadBoard(read_load)
        self._telemetry.instruments.observe_load(read_load, model=info.name)
        self._telemetry.instruments.observe_execution(lambda: self._info or info)
        if info.memory_limit_bytes:
            self._telemetry.instruments.observe_memory(info)
        self._info = info
        return self._board

    def drain(self) -> None:
        """Ends streams that serve no session, or serve none any more, when the server begins to stop."""
        if self._info is not None:
            self._board.close()
        for host in self._hosts:
            host.drain()

    def _served(self) -> ModelInfo:
        """The model. Raises WorkerUnavailableError while it is being loaded."""
        if self._info is None:
            raise WorkerUnavailableError(
                f"the {self.NAME} service is still loading its model; try again when it is ready"
            )
        return self._info

    async def _host(
        self,
        context: ServicerContext,
        kind: StreamKind[CommandT, EventT],
        open_session: Callable[[Any, Outbox[EventT]], Awaitable[ServedSession[CommandT, EventT]]],
    ) -> None:
        """Serves a stream of sessions to its end; see `SessionHost`."""
        host = SessionHost(context, kind, open_session)
        self._hosts.add(host)
        try:
            await host.run()
        finally:
            self._hosts.discard(host)

    @rpc_errors
    async def GetModelInfo(
        self, request: common_pb2.GetModelInfoRequest, context: ServicerContext
    ) -> common_pb2.GetModelInfoResponse:
        """What this worker serves."""
        return common_pb2.GetModelInfoResponse(model=wire.encode_model_info(self._served()))

    @rpc_errors
    async def GetSpans(
        self, request: common_pb2.GetSpansRequest, context: ServicerContext
    ) -> common_pb2.GetSpansResponse:
        """What this worker did for a request that is over."""
        ring = self._telemetry.ring
        return wire.encode_spans([] if ring is None else ring.spans(request.request_id))

    @rpc_errors
    async def GetLoad(self, request: common_pb2.GetLoadRequest, context: ServicerContext) -> None:
        """How busy this worker is, until the caller has heard enough."""
        self._served()
        async with aclosing(self._board.watch()) as loads:
            async for load in loads:
                await context.write(wire.encode_load(load))
