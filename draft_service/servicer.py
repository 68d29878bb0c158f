"""DraftService on the wire: decode, check, hand to the device thread; encode what comes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from draft_service.config import DraftConfig
from draft_service.drafter import Drafter, DraftEvent, DraftStream
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import DraftOpen, DraftWindow
from outrider.core.protocol.validation import check_draft_open
from outrider.core.schedule.policy import DraftPolicy
from outrider.engine.device_thread import DeviceThread
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.streams import prefilling
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider.worker.outbox import Outbox
from outrider.worker.servicer import ModelServicer
from outrider.worker.startup import LoadedModel
from outrider.worker.trace import SessionTrace


class DraftServicer(ModelServicer, draft_pb2_grpc.DraftServiceServicer):
    """One Draft stream is one session."""

    NAME = "draft"

    def __init__(self, config: DraftConfig, telemetry: Telemetry, policy: DraftPolicy | None = None) -> None:
        super().__init__(telemetry)
        self._config = config
        self._policy = policy
        self._drafter: Drafter

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """See `WorkerServicer.begin`."""
        self._drafter = Drafter(loaded.engine, self._policy)
        return self._take_over(loaded, self._drafter, on_death)

    @rpc_errors
    async def Draft(self, request: Any, context: ServicerContext) -> None:
        """Opens with the first command. After a half-close the session drafts what its credit allows, then ends."""
        loaded = self._require()
        opening = await self._opening(context, wire.decode_draft_command, DraftOpen)
        check_draft_open(opening, loaded.info.vocab_size, loaded.info.max_context)
        outbox: Outbox[DraftEvent] = Outbox()
        session = DraftStream(opening, outbox)
        self._device.submit(partial(self._drafter.open, session))
        try:
            with SessionTrace(self._telemetry, names.SPAN_DRAFT_SESSION, opening.session_id, opening.trace) as trace:
                async with prefilling(
                    context,
                    partial(self._on_command, session),
                    partial(self._device.submit, partial(self._drafter.finish, session)),
                    outbox.fail,
                ):
                    while (stamped := await outbox.take()) is not None:
                        await context.write(wire.encode_draft_event(stamped.event))
                        if trace.records_steps and isinstance(stamped.event, DraftWindow):
                            attributes = {names.STEP_NUM_NODES: len(stamped.event)}
                            trace.step(names.SPAN_DRAFT_STEP, stamped.started_ns, stamped.ended_ns, attributes)
        finally:
            self._device.submit_close(partial(self._drafter.close, session))

    def _on_command(self, session: DraftStream, message: draft_pb2.DraftCommand) -> None:
        command = wire.decode_draft_command(message)
        if isinstance(command, DraftOpen):
            raise ProtocolViolationError("`open` was sent already; open another stream for another session")
        self._device.submit(partial(self._drafter.commit, session, command))
