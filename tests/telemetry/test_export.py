"""Telemetry that leaves the process, to a collector on the loopback interface."""

from __future__ import annotations

import socket
import time

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outrider import __version__
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.telemetry import names
from outrider.telemetry.setup import SHUTDOWN_SECONDS, set_up
from tests.telemetry.collector import Collector


def test_shutting_down_sends_what_is_left(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    # The exporters read the environment themselves; `environ` only decides that there are some.
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    for variable, value in (endpoint | {"NO_PROXY": "127.0.0.1"}).items():
        monkeypatch.setenv(variable, value)
    telemetry = set_up("verifier", environ=endpoint)
    telemetry.tracer.start_span(names.SPAN_VERIFY_SESSION).end()
    telemetry.instruments.count(SpeculationStatistics(num_rounds=3), model="target", draft_model="draft")
    telemetry.shut_down()
    [traces] = map(ExportTraceServiceRequest.FromString, collector.received["/v1/traces"])
    assert [span.name for span in traces.resource_spans[0].scope_spans[0].spans] == [names.SPAN_VERIFY_SESSION]
    [metrics] = map(ExportMetricsServiceRequest.FromString, collector.received["/v1/metrics"])
    exported = {each.name: each for each in metrics.resource_metrics[0].scope_metrics[0].metrics}
    assert exported["outrider.rounds"].sum.data_points[0].as_int == 3


def test_a_collector_that_never_answers_costs_two_seconds_in_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        for variable, value in (endpoint | {"NO_PROXY": "127.0.0.1"}).items():
            monkeypatch.setenv(variable, value)
        telemetry = set_up("verifier", environ=endpoint)
        telemetry.tracer.start_span(names.SPAN_VERIFY_SESSION).end()
        telemetry.instruments.count(SpeculationStatistics(num_rounds=3), model="target", draft_model="draft")
        begun = time.monotonic()
        telemetry.shut_down()
        assert SHUTDOWN_SECONDS <= time.monotonic() - begun < 2 * SHUTDOWN_SECONDS
    assert "no collector took the last spans and metrics" in caplog.text


@pytest.mark.parametrize(
    ("chosen", "name", "version"),
    [
        ({}, "outrider-verify", __version__),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,service.version=7,team=b%20c"}, "a", "7"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,team=b%20c", "OTEL_SERVICE_NAME": "d"}, "d", __version__),
    ],
)
def test_the_users_resource_attributes_go_before_ours(
    chosen: dict[str, str], name: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in chosen.items():
        monkeypatch.setenv(variable, value)
    exporter = InMemorySpanExporter()
    set_up("outrider-verify", environ=chosen, span_exporter=exporter).tracer.start_span("s").end()
    attributes = exporter.get_finished_spans()[0].resource.attributes
    assert (attributes["service.name"], attributes["service.version"]) == (name, version)
    assert attributes.get("team") == ("b c" if chosen else None)
