"""What a session's span says at its end."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outrider.core.protocol.errors import QueueFullError
from outrider.core.protocol.messages import NOT_TRACED
from outrider.telemetry import names
from outrider.telemetry.setup import set_up
from outrider.worker.ledger import Column
from outrider.worker.trace import SessionTrace


@pytest.mark.parametrize("error", [None, QueueFullError("it is over"), KeyError("it is over")])
def test_a_peer_that_leaves_is_no_error_and_everything_else_is(error: Exception | None) -> None:
    exporter = InMemorySpanExporter()
    trace = SessionTrace(set_up("test", environ={}, span_exporter=exporter), "session", "1", NOT_TRACED)
    steps = trace.ledger([Column(names.SESSION_STEP_MS, is_count=False)], names.SESSION_NUM_ROUNDS)
    steps.note(2.5)
    steps.note(0.25)
    trace.end(error)
    (span,) = exporter.get_finished_spans()
    said = dict(span.attributes or {})
    assert (said[names.SESSION_NUM_ROUNDS], said[names.SESSION_STEP_MS]) == (2, 2.75)
    assert said.get(names.ERROR_TYPE) == (None if error is None else type(error).__name__)


def test_without_an_exporter_nothing_is_to_be_counted() -> None:
    assert not SessionTrace(set_up("test", environ={}), "session", "1", NOT_TRACED).is_recording
