"""Histograms that lead to traces, by OpenMetrics's own parser."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar

from outrider.core.protocol.messages import TraceContext
from outrider.telemetry.exposition import Exposition
from outrider.telemetry.ring import SpanRing
from outrider.telemetry.setup import Telemetry, set_up
from outrider.telemetry.tracing import extract, within

OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
"""As Prometheus asks."""
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def recorded(exposition: Exposition, seconds: float, flags: str = "01") -> Telemetry:
    """What has recorded one request of that duration, in a trace with those flags."""
    telemetry = set_up("all", environ={}, exposition=exposition, ring=SpanRing())
    span = telemetry.tracer.start_span("r", extract(TraceContext(f"00-{TRACE_ID}-b7ad6b7169203331-{flags}", "")))
    telemetry.instruments.record_request(seconds, model="target", context=within(span))
    return telemetry


def exemplars(exposition: Exposition) -> dict[tuple[str, str], Exemplar]:
    content, content_type = exposition.answer(OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    return {
        (sample.name, sample.labels["le"]): sample.exemplar
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
        if sample.exemplar is not None
    }


@pytest.mark.parametrize(("seconds", "bucket"), [(0.75, "0.75"), (0.76, "1.0"), (1e-6, "0.001"), (1e6, "+Inf")])
def test_the_bucket_that_counts_a_request_has_its_trace(seconds: float, bucket: str) -> None:
    exposition = Exposition(vllm_names=True)
    recorded(exposition, seconds)
    found = exemplars(exposition)
    assert found.keys() == {
        ("gen_ai_server_request_duration_seconds_bucket", bucket),
        ("vllm:e2e_request_latency_seconds_bucket", bucket),
    }
    for exemplar in found.values():
        assert (exemplar.labels, exemplar.value) == ({"trace_id": TRACE_ID}, seconds)


def test_a_trace_that_is_not_sampled_is_no_example() -> None:
    exposition = Exposition()
    recorded(exposition, 0.5, flags="00")
    assert exemplars(exposition) == {}


def test_a_duration_without_a_trace_is_told_as_before() -> None:
    exposition = Exposition()
    telemetry = set_up("all", environ={}, exposition=exposition)
    telemetry.instruments.record_request(0.5, model="target")
    assert exemplars(exposition) == {}
    assert b"gen_ai_server_request_duration_seconds_count" in exposition.text()


@pytest.mark.parametrize("accept", ["", "text/plain", "*/*", "application/json"])
def test_whoever_does_not_read_openmetrics_gets_plain_text(accept: str) -> None:
    exposition = Exposition()
    recorded(exposition, 0.5)
    content, content_type = exposition.answer(accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert TRACE_ID.encode() not in content
