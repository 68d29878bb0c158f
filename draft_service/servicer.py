"""DraftService on the wire: decode, check, hand to whoever drafts; encode what comes back. Needs no torch."""

from __future__ import annotations

from functools import partial
from typing import Any

from draft_service.drafts import DraftEvent, Drafts
from outrider.core.protocol.messages import DraftOpen, DraftWindow, Opened
from outrider.core.protocol.validation import check_draft_open
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.streams import reading
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider.worker.outbox import Outbox, Stamped
from outrider.worker.servicer import ModelServicer, reopened
from outrider.worker.trace import SessionTrace


class DraftServicer(ModelServicer, draft_pb2_grpc.DraftServiceServicer):
    """One Draft stream is one session."""

    NAME = "draft"

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        self._drafts: Drafts[Any]

    def draft_by(self, drafts: Drafts[Any]) -> None:
        """From now on `drafts` drafts for every session. To be said before `serve`."""
        self._drafts = drafts

    @rpc_errors
    async def Draft(self, request: Any, context: ServicerContext) -> None:
        """Opens with the first command. After a half-close the session drafts what its credit allows, then ends."""
        info = self._served()
        opening = await self._opening(context, wire.decode_draft_command, DraftOpen)
        check_draft_open(opening, info.vocab_size, info.max_context)
        outbox: Outbox[DraftEvent] = Outbox()
        session = await self._open(opening, outbox)
        try:
            with SessionTrace(self._telemetry, names.SPAN_DRAFT_SESSION, opening.session_id, opening.trace) as trace:
                async with reading(
                    context,
                    partial(self._on_command, session, trace),
                    partial(self._drafts.finish, session),
                    outbox.fail,
                ):
                    while (stamped := await outbox.take()) is not None:
                        if trace.is_recording:  # before the peer, who may leave at once, hears of it
                            _record(trace, stamped)
                        await context.write(wire.encode_draft_event(stamped.event))
        finally:
            self._drafts.close(session)

    async def _open(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> Any:
        """Begins a session of `_drafts`. Guesses of who knows no grammar are sorted out by the verifier."""
        return self._drafts.open(opening, outbox)

    def _on_command(self, session: Any, trace: SessionTrace, message: draft_pb2.DraftCommand) -> None:
        command = wire.decode_draft_command(message)
        if isinstance(command, DraftOpen):
            raise reopened()
        if trace.is_recording:
            trace.count(
                {
                    names.SESSION_NUM_ROUNDS: 1,
                    names.SESSION_NUM_TOKENS: len(command.token_ids),
                    names.SESSION_NUM_ROLLBACKS: command.rollback,
                }
            )
        self._drafts.commit(session, command)


def _record(trace: SessionTrace, stamped: Stamped[DraftEvent]) -> None:
    match stamped.event:
        case Opened():
            trace.seated(stamped.ended_ns)
        case DraftWindow() as window:
            trace.count({names.SESSION_NUM_NODES: len(window), names.SESSION_STEP_MS: window.draft_ms})
            if trace.records_steps:
                attributes = {names.STEP_NUM_NODES: len(window)}
                trace.step(names.SPAN_DRAFT_STEP, stamped.started_ns, stamped.ended_ns, attributes)
