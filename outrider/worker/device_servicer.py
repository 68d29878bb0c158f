"""A worker's service over a model on a device: what its start-up in `serving.py` asks of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import structlog

from outrider.core.protocol.messages import WorkerLoad
from outrider.core.schedule.admission import Admission
from outrider.engine.device_thread import DeviceThread, Worker
from outrider.engine.engine import Engine
from outrider.engine.library import CannotCompileError
from outrider.grammar.compiler import GrammarCompiler
from outrider.worker.execution import running, said
from outrider.worker.servicer import ModelServicer
from outrider.worker.startup import LoadedModel, report
from outrider.worker.step_runner import StepRunner

_log = structlog.get_logger()


class ModelWorker(Worker, Protocol):
    """What the device thread drives here."""

    @property
    def admission(self) -> Admission[Any]: ...

    @property
    def runner(self) -> StepRunner: ...

    def relearn(self) -> None:
        """Measures the time of steps anew: another forward pass is in use."""
        ...


class DeviceServicer(ModelServicer):
    """A service whose model is stepped on the device thread."""

    _loaded: LoadedModel
    _worker: ModelWorker
    _device: DeviceThread
    _grammars: GrammarCompiler

    def _take_over(
        self, loaded: LoadedModel, worker: ModelWorker, on_death: Callable[[BaseException], None]
    ) -> DeviceThread:
        """From now on serves `loaded` by `worker`. Returns the device thread, not started yet."""
        self._loaded, self._worker = loaded, worker
        info = loaded.info
        self._grammars = GrammarCompiler(loaded.tokenizer.json, info.vocab_size, info.eos_token_ids)
        self._device = device = DeviceThread(worker, on_death, loaded.engine.device)

        def read_load() -> WorkerLoad:
            load = worker.runner.load(info.instance_id, worker.admission)
            return load._replace(progress=device.progress, is_busy=device.is_busy)

        board = self.serve(info, read_load)
        self._telemetry.instruments.observe_steps(worker.runner.times.read, model=info.name)
        worker.runner.on_change = board.touch
        return self._device

    def adopt(self, engine: Engine, package: Path) -> None:
        """See `WorkerServicer.adopt`."""
        try:
            engine.adopt(package)
        except CannotCompileError as error:
            _log.warning("not compiled", reason=str(error))
            return
        if engine is self._loaded.engine:
            self._info = running(self._loaded.info, engine)
            _log.info("runs on", **said(self._info))
        self._worker.relearn()
        if not self._worker.admission.seated:
            report(engine)

    def _require(self) -> LoadedModel:
        """The model. Raises WorkerUnavailableError while it is being loaded."""
        self._served()
        return self._loaded
