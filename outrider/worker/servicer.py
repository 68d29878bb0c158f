"""What the two workers' services have in common on the wire."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from outrider.core.protocol.errors import ProtocolViolationError, WorkerUnavailableError
from outrider.core.schedule.admission import Admission
from outrider.engine.device_thread import DeviceThread, Worker
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.streams import EOF
from outrider.telemetry.setup import Telemetry
from outrider.v1 import common_pb2
from outrider.worker.load import LoadBoard
from outrider.worker.startup import LoadedModel, report
from outrider.worker.step_runner import StepRunner

OpeningT = TypeVar("OpeningT")


class ModelWorker(Worker, Protocol):
    """What the device thread drives here."""

    @property
    def admission(self) -> Admission[Any]: ...

    @property
    def runner(self) -> StepRunner: ...

    def relearn(self) -> None:
        """Measures the time of steps anew: another forward pass is in use."""
        ...


class ModelServicer:
    """A service over one model, from the moment that it is loaded."""

    NAME: ClassVar[str]
    """What the service is called in sentences."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._loaded: LoadedModel | None = None
        self._worker: ModelWorker
        self._device: DeviceThread
        self._board: LoadBoard

    def _take_over(
        self, loaded: LoadedModel, worker: ModelWorker, on_death: Callable[[BaseException], None]
    ) -> DeviceThread:
        """From now on serves `loaded` by `worker`. Returns the device thread, not started yet."""
        read_load = partial(worker.runner.load, loaded.info.instance_id, worker.admission)
        self._worker = worker
        self._board = LoadBoard(read_load)
        worker.runner.on_change = self._board.touch
        self._telemetry.instruments.observe_load(read_load, model=loaded.info.name)
        self._device = DeviceThread(worker, on_death, loaded.engine.device)
        self._loaded = loaded
        return self._device

    def adopt(self, package: Path) -> None:
        """See `WorkerServicer.adopt`."""
        engine = self._worker.runner.engine
        engine.adopt(package)
        self._worker.relearn()
        if not self._worker.admission.seated:
            report(engine)

    def drain(self) -> None:
        """See `WorkerServicer.drain`."""
        if self._loaded is not None:
            self._board.close()

    def _require(self) -> LoadedModel:
        """The model. Raises WorkerUnavailableError while it is being loaded."""
        if self._loaded is None:
            raise WorkerUnavailableError(
                f"the {self.NAME} service is still loading its model; try again when it is ready"
            )
        return self._loaded

    async def _opening(
        self, context: ServicerContext, decode: Callable[[Any], Any], opening_type: type[OpeningT]
    ) -> OpeningT:
        """The first command of a stream, decoded. Raises ProtocolViolationError if it is another one."""
        message = await context.read()
        opening = decode(message) if message is not EOF else None
        if not isinstance(opening, opening_type):
            raise ProtocolViolationError(f"a {self.NAME.title()} stream begins with `open`; send it first")
        return opening

    @rpc_errors
    async def GetModelInfo(
        self, request: common_pb2.GetModelInfoRequest, context: ServicerContext
    ) -> common_pb2.GetModelInfoResponse:
        """What this worker serves."""
        return common_pb2.GetModelInfoResponse(model=wire.encode_model_info(self._require().info))

    @rpc_errors
    async def GetLoad(self, request: common_pb2.GetLoadRequest, context: ServicerContext) -> None:
        """How busy this worker is, until the caller has heard enough."""
        self._require()
        async with aclosing(self._board.watch()) as loads:
            async for load in loads:
                await context.write(wire.encode_load(load))
