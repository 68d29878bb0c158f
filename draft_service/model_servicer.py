"""DraftService with a draft model: the drafter steps on a device thread, to which everything is handed over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from draft_service.drafter import Drafter, DraftStream
from draft_service.drafts import DraftEvent
from draft_service.servicer import DraftServicer
from outrider.core.protocol.messages import Commitment, DraftOpen
from outrider.core.schedule.policy import DraftPolicy
from outrider.engine.device_thread import DeviceThread
from outrider.telemetry.setup import Telemetry
from outrider.worker.device_servicer import DeviceServicer
from outrider.worker.outbox import Outbox
from outrider.worker.startup import LoadedModel


class DeviceDrafts:
    """A drafter as the event loop speaks to it; see `Drafts`."""

    def __init__(self, drafter: Drafter, device: DeviceThread) -> None:
        self._drafter = drafter
        self._device = device

    def open(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> DraftStream:
        """See `Drafts.open`."""
        session = DraftStream(opening, outbox)
        self._device.submit(partial(self._drafter.open, session))
        return session

    def commit(self, session: DraftStream, commitment: Commitment) -> None:
        """See `Drafts.commit`."""
        self._device.submit(partial(self._drafter.commit, session, commitment))

    def finish(self, session: DraftStream) -> None:
        """See `Drafts.finish`."""
        self._device.submit(partial(self._drafter.finish, session))

    def close(self, session: DraftStream) -> None:
        """See `Drafts.close`."""
        self._device.submit_close(partial(self._drafter.close, session))


class ModelDraftServicer(DraftServicer, DeviceServicer):
    """The service as a worker with a model starts it."""

    _drafter: Drafter

    def __init__(self, telemetry: Telemetry, policy: DraftPolicy | None = None) -> None:
        super().__init__(telemetry)
        self._policy = policy

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """See `WorkerServicer.begin`."""
        self._drafter = Drafter(loaded.engine, self._policy)
        device = self._take_over(loaded, self._drafter, on_death)
        self.draft_by(DeviceDrafts(self._drafter, device))
        return device
