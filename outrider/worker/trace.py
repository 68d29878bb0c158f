"""OpenTelemetry spans of one session at a worker: the session, and its steps if they are wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from opentelemetry.util.types import AttributeValue

from outrider.core.protocol.messages import TraceContext
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.telemetry.tracing import extract, record_span, within
from outrider.worker.ledger import Column, Ledger


class SessionTrace:
    """From the session's opening to `end`.

    A peer that leaves is no error: that is how a coordinator ends a session, and of a session that it ends early the
    request's own span tells why.
    """

    def __init__(self, telemetry: Telemetry, span_name: str, session_id: str, trace: TraceContext) -> None:
        self._telemetry = telemetry
        self._span = telemetry.tracer.start_span(span_name, extract(trace), attributes={names.SESSION_ID: session_id})
        self.is_recording = self._span.is_recording()
        """Whether ledgers are worth an entry."""
        self.records_steps = telemetry.records_rounds(self._span)
        """Whether to call `step`."""
        self._opened_ns = time.time_ns()
        self._ledgers: list[Ledger] = []

    def seated(self, at_ns: int) -> None:
        """The session has a slot since that wall-clock time."""
        self._span.set_attribute(names.SESSION_QUEUE_MS, self.since_opening_ms(at_ns))

    def ledger(self, columns: Sequence[Column], num_rows: str = "") -> Ledger:
        """A ledger of which the span tells at its end. See `Ledger`."""
        self._ledgers.append(Ledger(columns, num_rows))
        return self._ledgers[-1]

    def since_opening_ms(self, at_ns: int) -> float:
        """From the session's opening to that wall-clock time."""
        return (at_ns - self._opened_ns) / 1e6

    def step(self, span_name: str, started_ns: int, ended_ns: int, attributes: Mapping[str, AttributeValue]) -> None:
        """Records work of the device thread that is over."""
        record_span(self._telemetry.tracer, span_name, within(self._span), started_ns, ended_ns, attributes)

    def end(self, error: BaseException | None) -> None:
        """The session is over, because of `error` if there is one."""
        if self.is_recording:
            for ledger in self._ledgers:
                self._span.set_attributes(ledger.attributes())
        if error is not None:
            self._span.set_attribute(names.ERROR_TYPE, type(error).__name__)
        self._span.end()
