"""What a process remembers of the latest requests, and what it does not."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outrider.core.protocol.messages import TraceContext
from outrider.telemetry import names
from outrider.telemetry.ring import VALUES_MAX, SpanRing
from outrider.telemetry.setup import Telemetry, set_up
from outrider.telemetry.tracing import extract, record_span, within

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = TraceContext(f"00-{TRACE_ID}-b7ad6b7169203331-01", "")
NOT_SAMPLED = TraceContext(f"00-{TRACE_ID}-b7ad6b7169203331-00", "")


def remembering(num_spans_max: int = 4, **environ: str) -> tuple[Telemetry, SpanRing]:
    ring = SpanRing(num_spans_max)
    return set_up("outrider-coordinator", environ=environ, ring=ring), ring


def request(telemetry: Telemetry, request_id: str, caller: TraceContext = SAMPLED, **more: Any) -> None:
    attributes = {names.GEN_AI_RESPONSE_ID: request_id, **more}
    telemetry.tracer.start_span("text_completion target", extract(caller), attributes=attributes).end()


def test_a_request_is_found_by_its_id_and_by_its_traces_the_latest_first() -> None:
    telemetry, ring = remembering()
    for request_id in ("r1", "r2"):
        request(telemetry, request_id)
    (first,) = ring.spans("r1")
    assert (first.service, first.name, first.trace_id) == ("outrider-coordinator", "text_completion target", TRACE_ID)
    assert first.parent_id == "b7ad6b7169203331"
    assert first.end_ns >= first.start_ns > 0
    assert [span.attributes[names.GEN_AI_RESPONSE_ID] for span in ring.spans(TRACE_ID)] == ["r2", "r1"]
    assert ring.spans("r3") == []


def test_a_session_belongs_to_its_request_whichever_completion_it_is_of() -> None:
    telemetry, ring = remembering()
    for session_id in ("r1.0", "r1.1", "r10.0", "r1"):
        telemetry.tracer.start_span("verify session", attributes={names.SESSION_ID: session_id}).end()
    assert [span.attributes[names.SESSION_ID] for span in ring.spans("r1")] == ["r1", "r1.1", "r1.0"]


def test_the_oldest_gives_way() -> None:
    telemetry, ring = remembering(num_spans_max=2)
    for request_id in ("r1", "r2", "r3"):
        request(telemetry, request_id)
    assert [len(ring.spans(request_id)) for request_id in ("r1", "r2", "r3")] == [0, 1, 1]


def test_a_clients_words_are_not_remembered_and_lists_are_bounded() -> None:
    ring, exporter = SpanRing(), InMemorySpanExporter()
    both = set_up("outrider-coordinator", environ={}, span_exporter=exporter, ring=ring)
    request(both, "r1", **{names.GEN_AI_REQUEST_STOP_SEQUENCES: ("secret",), names.ROUNDS_MS: (1.5,) * 2 * VALUES_MAX})
    (kept,), (exported,) = ring.spans("r1"), exporter.get_finished_spans()
    assert "secret" not in str(kept)
    assert kept.attributes[names.ROUNDS_MS] == (1.5,) * VALUES_MAX
    assert exported.attributes is not None
    assert exported.attributes[names.GEN_AI_REQUEST_STOP_SEQUENCES] == ("secret",)


def test_what_no_collector_is_sent_is_remembered_all_the_same() -> None:
    ring, exporter = SpanRing(), InMemorySpanExporter()
    telemetry = set_up("verify", environ={"OUTRIDER_TRACE_DETAIL": "round"}, span_exporter=exporter, ring=ring)
    request(telemetry, "r1", NOT_SAMPLED)
    request(telemetry, "r2", SAMPLED)
    assert [len(ring.spans(request_id)) for request_id in ("r1", "r2")] == [1, 1]
    assert [(span.attributes or {})[names.GEN_AI_RESPONSE_ID] for span in exporter.get_finished_spans()] == ["r2"]
    unsampled = telemetry.tracer.start_span("verify session", extract(NOT_SAMPLED))
    assert unsampled.is_recording()
    assert not telemetry.records_rounds(unsampled), "nobody would get them"


def test_rounds_and_steps_are_not_remembered_one_by_one() -> None:
    telemetry, ring = remembering(OUTRIDER_TRACE_DETAIL="round")
    span = telemetry.tracer.start_span("verify session", attributes={names.SESSION_ID: "r1"})
    assert not telemetry.records_rounds(span), "only the ring would get them"
    record_span(telemetry.tracer, names.SPAN_VERIFY_STEP, within(span), 1, 2, {names.ROUND_POSITION: 3})
    span.end()
    assert [each.name for each in ring.spans("r1")] == ["verify session"]


def test_disabled_telemetry_remembers_nothing() -> None:
    telemetry, ring = remembering(OTEL_SDK_DISABLED="true")
    request(telemetry, "r1")
    assert ring.spans("r1") == []
