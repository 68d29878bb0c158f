"""Spans as an exporter sees them: off by default, one trace over services, times as given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span

from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.messages import NOT_TRACED, TraceContext
from outrider.core.protocol.sampling import SamplingParams
from outrider.telemetry import names
from outrider.telemetry.attributes import request_attributes, speculation_attributes
from outrider.telemetry.setup import Telemetry, TelemetrySettingError, set_up
from outrider.telemetry.tracing import TraceDetail, extract, inject, record_span, within

MODELS = Path(__file__).parents[2] / "models"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def traced(environ: dict[str, str] | None = None) -> tuple[Telemetry, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    return set_up("coordinator", environ=environ or {}, span_exporter=exporter), exporter


def test_off_is_the_default_and_records_nothing() -> None:
    telemetry = set_up("coordinator", environ={"OUTRIDER_TRACE_DETAIL": "round"})
    span = telemetry.tracer.start_span("request")
    assert not span.is_recording()
    assert not telemetry.records_rounds(span)
    assert inject(span) == NOT_TRACED
    telemetry.instruments.count(SpeculationStatistics(num_rounds=3), model="target", draft_model="draft")
    telemetry.shut_down()


def test_a_service_that_records_nothing_still_hands_the_context_on() -> None:
    telemetry = set_up("coordinator", environ={})
    span = telemetry.tracer.start_span("request", extract(TraceContext(TRACEPARENT, "vendor=1")))
    assert inject(span) == TraceContext(TRACEPARENT, "vendor=1")


def test_the_sdk_can_be_disabled_altogether() -> None:
    telemetry, exporter = traced({"OTEL_SDK_DISABLED": "true"})
    telemetry.tracer.start_span("request").end()
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("environ", "records"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318/v1/metrics"}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_the_standard_variables_choose_the_exporter(
    environ: dict[str, str], records: bool, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = set_up("coordinator", environ=environ | {"OTEL_METRICS_EXPORTER": "none"})
    assert telemetry.tracer.start_span("never ended, so never sent").is_recording() == records
    assert ("zipkin is ignored" in caplog.text) == (environ.get("OTEL_TRACES_EXPORTER") == "zipkin")
    telemetry.shut_down()


def test_one_trace_spans_two_services() -> None:
    coordinator, coordinator_spans = traced()
    verifier, verifier_spans = traced()
    with coordinator.tracer.start_as_current_span(names.request_span("target")) as request:
        on_the_wire = inject(request)
        verifier.tracer.start_span(names.SPAN_VERIFY_SESSION, extract(on_the_wire)).end()
    [root] = coordinator_spans.get_finished_spans()
    [session] = verifier_spans.get_finished_spans()
    assert root.context is not None
    assert session.context is not None
    assert session.parent is not None
    assert session.context.trace_id == root.context.trace_id
    assert session.parent.span_id == root.context.span_id
    assert session.parent.is_remote


@pytest.mark.parametrize(
    "received",
    [
        NOT_TRACED,
        TraceContext("", "vendor=1"),
        TraceContext("nonsense", "vendor=1"),
        TraceContext("00-" + "0" * 32 + "-b7ad6b7169203331-01", ""),
        TraceContext(f"00-{TRACE_ID}-{'0' * 16}-01", ""),
        TraceContext(f"ff-{TRACE_ID}-b7ad6b7169203331-01", ""),
        TraceContext(TRACEPARENT.upper(), ""),
        TraceContext(TRACEPARENT + "-more", ""),
        TraceContext("00-" * 1_000_000, ""),
        TraceContext("\x00\ud800", ""),
    ],
)
def test_what_is_no_trace_context_is_harmless(received: TraceContext) -> None:
    telemetry, exporter = traced()
    telemetry.tracer.start_span(names.SPAN_DRAFT_SESSION, extract(received)).end()
    [span] = exporter.get_finished_spans()
    assert span.parent is None


@pytest.mark.parametrize(
    "tracestate",
    ["", "=", "a" * 1_000_000, ",".join(f"k{i}=v" for i in range(1000)), "\x00\ud800"],
    ids=["empty", "equals", "long", "many", "no text"],
)
def test_a_bad_tracestate_does_not_lose_the_trace(tracestate: str) -> None:
    telemetry, _ = traced()
    span = telemetry.tracer.start_span(names.SPAN_DRAFT_SESSION, extract(TraceContext(TRACEPARENT, tracestate)))
    assert inject(span).traceparent.split("-")[1] == TRACE_ID


def test_an_unsampled_request_is_not_recorded_by_the_worker() -> None:
    telemetry, exporter = traced({"OUTRIDER_TRACE_DETAIL": "round"})
    span = telemetry.tracer.start_span(names.SPAN_DRAFT_SESSION, extract(TraceContext(TRACEPARENT[:-1] + "0", "")))
    assert not telemetry.records_rounds(span)
    span.end()
    assert exporter.get_finished_spans() == ()


def test_the_context_of_the_caller_is_the_only_parent() -> None:
    telemetry, exporter = traced()
    with telemetry.tracer.start_as_current_span("something else that runs"):
        telemetry.tracer.start_span(names.SPAN_DRAFT_SESSION, extract(NOT_TRACED)).end()
    assert exporter.get_finished_spans()[0].parent is None


@pytest.mark.parametrize(
    ("value", "detail"), [(None, TraceDetail.REQUEST), ("request", TraceDetail.REQUEST), ("round", TraceDetail.ROUND)]
)
def test_rounds_are_recorded_on_demand(value: str | None, detail: TraceDetail) -> None:
    telemetry, _ = traced({} if value is None else {"OUTRIDER_TRACE_DETAIL": value})
    assert telemetry.detail is detail
    assert telemetry.records_rounds(telemetry.tracer.start_span("request")) == (detail is TraceDetail.ROUND)


def test_a_bad_detail_is_refused_in_words() -> None:
    with pytest.raises(TelemetrySettingError, match="'all'; set it to request or round"):
        set_up("coordinator", environ={"OUTRIDER_TRACE_DETAIL": "all"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_what_the_sdk_cannot_read_is_refused_in_words(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)  # which the SDK reads itself
    with pytest.raises(TelemetrySettingError, match=r"^an OTEL_\* variable has a value that it cannot have: "):
        set_up("coordinator", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})


@pytest.mark.parametrize("variable", ["ENDPOINT", "TRACES_ENDPOINT", "METRICS_ENDPOINT"])
@pytest.mark.parametrize(
    "value",
    ["127.0.0.1:4318", "localhost:4318", "collector", "grpc://h:4317", "http://", "http://h:port", "http://[::1"],
)
def test_an_endpoint_that_is_no_url_is_refused_in_words(variable: str, value: str) -> None:
    with pytest.raises(TelemetrySettingError, match=f"^OTEL_EXPORTER_OTLP_{variable} is '.*'; set it to a URL such as"):
        set_up("coordinator", environ={f"OTEL_EXPORTER_OTLP_{variable}": value})


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://h", "http://u:p@[::1]:4318/otlp"])
def test_a_signals_own_endpoint_goes_before_that_of_all(endpoint: str) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "none", "OTEL_METRICS_EXPORTER": "none"}
    telemetry = set_up("coordinator", environ=environ | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint})
    assert telemetry.tracer.start_span("request").is_recording()
    telemetry.shut_down()


def test_an_endpoint_that_nothing_is_sent_to_is_not_looked_at() -> None:
    none = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    telemetry = set_up("coordinator", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "none"} | none)
    assert not telemetry.tracer.start_span("request").is_recording()


def test_a_service_ends_with_the_sentence(tmp_path: Path) -> None:
    commands = (
        ["coordinator", "--verify=127.0.0.1:1"],
        ["draft_service", "--model=ngram"],
        ["verify_service", f"--model={MODELS / 'target'}"],
    )
    environment = os.environ | {"OUTRIDER_TRACE_DETAIL": "all", "OUTRIDER_LISTEN": "127.0.0.1:0"}
    services = [
        subprocess.Popen([sys.executable, "-m", *command], env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for service in services:
        _, said = service.communicate()
        assert (service.returncode, len(said.splitlines())) == (1, 1)
        assert "OUTRIDER_TRACE_DETAIL is 'all'; set it to request or round" in said


def test_work_that_is_over_is_recorded_with_its_own_times() -> None:
    telemetry, exporter = traced()
    session: Span = telemetry.tracer.start_span(names.SPAN_VERIFY_SESSION)
    attributes = {names.ROUND_NUM_ACCEPTED: 3}
    record_span(telemetry.tracer, names.SPAN_VERIFY_STEP, within(session), 1_000, 3_500, attributes)
    [step] = exporter.get_finished_spans()
    assert (step.start_time, step.end_time) == (1_000, 3_500)
    assert step.attributes == attributes
    assert step.parent == session.get_span_context()


def test_the_largest_seed_survives_the_encoding() -> None:
    telemetry, exporter = traced()
    sampling = SamplingParams(seed=2**64 - 1, temperature=0.8)
    attributes = request_attributes("target", sampling, max_tokens=16, stop=["\n\n"], num_completions=3)
    telemetry.tracer.start_span("request", attributes=attributes).end()
    [encoded] = encode_spans(exporter.get_finished_spans()).resource_spans[0].scope_spans[0].spans
    values = {each.key: each.value for each in encoded.attributes}
    assert values[names.SEED].string_value == str(2**64 - 1)
    assert values[names.GEN_AI_REQUEST_TEMPERATURE].double_value == 0.8
    assert names.GEN_AI_REQUEST_SEED not in values
    assert values[names.GEN_AI_REQUEST_CHOICE_COUNT].int_value == 3


def test_rounds_are_arrays_on_the_request() -> None:
    statistics = SpeculationStatistics(
        num_rounds=2, num_draft_tokens=7, num_accepted_tokens=4, drafted_by_round=[4, 3], accepted_by_round=[4, 0]
    )
    telemetry, exporter = traced()
    telemetry.tracer.start_span("request", attributes=speculation_attributes(statistics)).end()
    recorded = exporter.get_finished_spans()[0].attributes
    assert recorded is not None
    assert recorded[names.ROUNDS_NUM_DRAFT_TOKENS] == (4, 3)
    assert recorded[names.ROUNDS_NUM_ACCEPTED] == (4, 0)


def test_spans_name_the_service() -> None:
    telemetry, exporter = traced()
    telemetry.tracer.start_span("request").end()
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "coordinator"
    telemetry, exporter = traced({"OTEL_SERVICE_NAME": "mine"})
    telemetry.tracer.start_span("request").end()
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "mine"
