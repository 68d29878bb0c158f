"""DraftService on the wire: decode, check, hand to whoever drafts; encode what comes back. Needs no torch."""

from __future__ import annotations

from typing import Any

from draft_service.drafts import DraftEvent, Drafts
from draft_service.served_drafting import ServedDrafting
from outrider.core.protocol.messages import DraftOpen
from outrider.core.protocol.validation import check_draft_open
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.stream_kind import DRAFT
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.v1 import draft_pb2_grpc
from outrider.worker.outbox import Outbox
from outrider.worker.servicer import ModelServicer
from outrider.worker.trace import SessionTrace


class DraftServicer(ModelServicer, draft_pb2_grpc.DraftServiceServicer):
    """One Draft stream is one coordinator."""

    NAME = "draft"

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        self._drafts: Drafts[Any]

    def draft_by(self, drafts: Drafts[Any]) -> None:
        """From now on `drafts` drafts for every session. To be said before `serve`."""
        self._drafts = drafts

    @rpc_errors
    async def Draft(self, request: Any, context: ServicerContext) -> None:
        """Serves the sessions of one coordinator. After a half-close each drafts what its credit allows, then ends."""
        self._served()
        await self._host(context, DRAFT, self._serve_session)

    async def _serve_session(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> ServedDrafting:
        info = self._served()
        check_draft_open(opening, info.vocab_size, info.max_context)
        trace = SessionTrace(self._telemetry, names.SPAN_DRAFT_SESSION, opening.session_id, opening.trace)
        session = await self._open(opening, outbox)
        return ServedDrafting(self._drafts, session, trace)

    async def _open(self, opening: DraftOpen, outbox: Outbox[DraftEvent]) -> Any:
        """Begins a session of `_drafts`. Guesses of who knows no grammar are sorted out by the verifier."""
        return self._drafts.open(opening, outbox)
