"""A worker's service over a model on a device: what its start-up in `serving.py` asks of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from outrider.engine.device_thread import DeviceThread, Worker
from outrider.worker.admission import Admission
from outrider.worker.servicer import ModelServicer
from outrider.worker.startup import LoadedModel, report


class ModelWorker(Worker, Protocol):
    """What the device thread drives here."""

    @property
    def admission(self) -> Admission[Any]: ...

    def relearn(self) -> None:
        """Measures the time of steps anew: another forward pass is in use."""
        ...


class DeviceServicer(ModelServicer):
    """A service whose model is stepped on the device thread."""

    _loaded: LoadedModel
    _worker: ModelWorker
    _device: DeviceThread

    def _take_over(
        self, loaded: LoadedModel, worker: ModelWorker, on_death: Callable[[BaseException], None]
    ) -> DeviceThread:
        """From now on serves `loaded` by `worker`. Returns the device thread, not started yet."""
        self._loaded, self._worker = loaded, worker
        self._device = DeviceThread(worker, on_death, loaded.engine.device)
        board = self.serve(loaded.info, partial(worker.admission.load, loaded.info.instance_id))
        worker.admission.on_change = board.touch
        return self._device

    def adopt(self, package: Path) -> None:
        """See `WorkerServicer.adopt`."""
        admission = self._worker.admission
        admission.engine.adopt(package)
        self._worker.relearn()
        if not admission.sessions:
            report(admission.engine)

    def _require(self) -> LoadedModel:
        """The model. Raises WorkerUnavailableError while it is being loaded."""
        self._served()
        return self._loaded
