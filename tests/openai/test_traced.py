"""A request over HTTP has its place in its caller's trace."""

from __future__ import annotations

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outrider.telemetry import names
from outrider.telemetry.setup import set_up
from tests.e2e.stack import coordinator
from tests.openai.conftest import Served, http_at

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_the_trace_of_the_caller_goes_on(served: Served) -> None:
    exporter = InMemorySpanExporter()
    telemetry = set_up("test", environ={}, span_exporter=exporter)
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with (
        coordinator(served.verify.address, "", telemetry=telemetry) as stack,
        http_at(stack) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
        answer = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}, headers=headers)
        assert answer.status_code == 200
        broken = await client.post(
            "/v1/completions", json={"prompt": "a", "max_tokens": 2}, headers={"traceparent": b"\xff" * 5000}
        )
        assert broken.status_code == 200
    first, second = [span for span in exporter.get_finished_spans() if span.name == names.request_span("target")]
    assert first.parent is not None
    assert (f"{first.parent.trace_id:032x}", f"{first.parent.span_id:016x}") == (trace_id, span_id)
    assert first.attributes is not None
    assert first.attributes[names.GEN_AI_RESPONSE_ID] == answer.headers["x-request-id"]
    assert second.parent is None
