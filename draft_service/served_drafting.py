"""A session at the draft service: its commands on their way to whoever drafts, and its span."""

from __future__ import annotations

from typing import Any, Final

from draft_service.drafts import DraftEvent, Drafts
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.telemetry import names
from outrider.worker.ledger import Column
from outrider.worker.outbox import Stamped
from outrider.worker.served_session import reopened
from outrider.worker.trace import SessionTrace

_COMMITMENT: Final = (Column(names.SESSION_NUM_TOKENS), Column(names.SESSION_NUM_ROLLBACKS))
_WINDOW: Final = (
    Column(each=names.STEPS_START_MS, is_count=False),
    Column(names.SESSION_STEP_MS, names.STEPS_DURATION_MS, is_count=False),
    Column(names.SESSION_NUM_NODES, names.STEPS_NUM_NODES),
)


class ServedDrafting:
    """See `ServedSession`."""

    def __init__(self, drafts: Drafts[Any], session: Any, trace: SessionTrace) -> None:
        """`session` is one of `drafts`."""
        self._drafts = drafts
        self._session = session
        self._trace = trace
        self._commitments = trace.ledger(_COMMITMENT, names.SESSION_NUM_ROUNDS)
        self._windows = trace.ledger(_WINDOW)

    def take(self, command: DraftOpen | Commitment) -> None:
        """See `ServedSession.take`."""
        if isinstance(command, DraftOpen):
            raise reopened()
        if self._trace.is_recording:
            self._commitments.note(len(command.token_ids), command.rollback)
        self._drafts.commit(self._session, command)

    def finish(self) -> None:
        """See `ServedSession.finish`."""
        self._drafts.finish(self._session)

    def record(self, stamped: Stamped[DraftEvent]) -> None:
        """See `ServedSession.record`."""
        trace = self._trace
        if not trace.is_recording:
            return
        match stamped.event:
            case Opened():
                trace.seated(stamped.ended_ns)
            case DraftWindow() as window:
                self._windows.note(trace.since_opening_ms(stamped.started_ns), window.draft_ms, len(window))
                if trace.records_steps:
                    attributes = {names.STEP_NUM_NODES: len(window)}
                    trace.step(names.SPAN_DRAFT_STEP, stamped.started_ns, stamped.ended_ns, attributes)

    def close(self, error: BaseException | None) -> None:
        """See `ServedSession.close`."""
        self._trace.end(error)
        self._drafts.close(self._session)
