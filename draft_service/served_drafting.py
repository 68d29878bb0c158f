"""A session at the draft service: its commands on their way to whoever drafts, and its span."""

from __future__ import annotations

from typing import Any

from draft_service.drafts import DraftEvent, Drafts
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.telemetry import names
from outrider.worker.outbox import Stamped
from outrider.worker.served_session import reopened
from outrider.worker.trace import SessionTrace


class ServedDrafting:
    """See `ServedSession`."""

    def __init__(self, drafts: Drafts[Any], session: Any, trace: SessionTrace) -> None:
        """`session` is one of `drafts`."""
        self._drafts = drafts
        self._session = session
        self._trace = trace

    def take(self, command: DraftOpen | Commitment) -> None:
        """See `ServedSession.take`."""
        if isinstance(command, DraftOpen):
            raise reopened()
        if self._trace.is_recording:
            self._trace.count(
                {
                    names.SESSION_NUM_ROUNDS: 1,
                    names.SESSION_NUM_TOKENS: len(command.token_ids),
                    names.SESSION_NUM_ROLLBACKS: command.rollback,
                }
            )
        self._drafts.commit(self._session, command)

    def finish(self) -> None:
        """See `ServedSession.finish`."""
        self._drafts.finish(self._session)

    def record(self, stamped: Stamped[DraftEvent]) -> None:
        """See `ServedSession.record`."""
        if self._trace.is_recording:
            _record(self._trace, stamped)

    def close(self, error: BaseException | None) -> None:
        """See `ServedSession.close`."""
        self._trace.end(error)
        self._drafts.close(self._session)


def _record(trace: SessionTrace, stamped: Stamped[DraftEvent]) -> None:
    match stamped.event:
        case Opened():
            trace.seated(stamped.ended_ns)
        case DraftWindow() as window:
            trace.count({names.SESSION_NUM_NODES: len(window), names.SESSION_STEP_MS: window.draft_ms})
            if trace.records_steps:
                attributes = {names.STEP_NUM_NODES: len(window)}
                trace.step(names.SPAN_DRAFT_STEP, stamped.started_ns, stamped.ended_ns, attributes)
