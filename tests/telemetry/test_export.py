"""Telemetry that leaves the process, to a collector on the loopback interface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.telemetry import names
from outrider.telemetry.setup import set_up


class Collector(HTTPServer):
    """Keeps what is posted to it, by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.received: dict[str, list[bytes]] = {}


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.setdefault(self.path, []).append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_shutting_down_sends_what_is_left(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    # The exporters read the environment themselves; `environ` only decides that there are some.
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    for variable, value in (endpoint | {"NO_PROXY": "127.0.0.1"}).items():
        monkeypatch.setenv(variable, value)
    telemetry = set_up("verifier", environ=endpoint)
    telemetry.tracer.start_span(names.SPAN_VERIFY_SESSION).end()
    telemetry.instruments.count(SpeculationStatistics(num_rounds=3))
    telemetry.shut_down()
    [traces] = map(ExportTraceServiceRequest.FromString, collector.received["/v1/traces"])
    assert [span.name for span in traces.resource_spans[0].scope_spans[0].spans] == [names.SPAN_VERIFY_SESSION]
    [metrics] = map(ExportMetricsServiceRequest.FromString, collector.received["/v1/metrics"])
    exported = {each.name: each for each in metrics.resource_metrics[0].scope_metrics[0].metrics}
    assert exported["outrider.rounds"].sum.data_points[0].as_int == 3
