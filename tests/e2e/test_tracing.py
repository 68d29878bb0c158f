"""One trace per request over all three services, in which drafting and verifying overlap."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from outrider.client import GenerationMode
from outrider.core.protocol.messages import TraceContext
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.channels import open_channel
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry, set_up
from outrider.v1 import generation_pb2, generation_pb2_grpc
from tests.e2e.answers import Answer, ask
from tests.e2e.stack import bundled, coordinator, worker

DETAIL = {"OUTRIDER_TRACE_DETAIL": "round"}


async def traced(
    environ: dict[str, str], caller: TraceContext | None = None
) -> tuple[Answer | None, list[ReadableSpan]]:
    """One generation of the bundled pair, and every span that the three services recorded of it."""
    exporter = InMemorySpanExporter()

    def telemetry(service: str) -> Telemetry:
        return set_up(service, environ=environ, span_exporter=exporter)

    answer = None
    async with AsyncExitStack() as running:
        verify = await running.enter_async_context(worker(bundled("target"), telemetry=telemetry("verify")))
        draft = await running.enter_async_context(worker(bundled("draft"), draft=True, telemetry=telemetry("draft")))
        coordinate = await running.enter_async_context(
            coordinator(verify.address, draft.address, telemetry=telemetry("coordinator"))
        )
        if caller is None:
            sampling = SamplingParams(temperature=0.8, top_p=0.9, seed=7)
            answer = await ask(coordinate.client, "import os\n", max_tokens=60, ignore_eos=True, sampling=sampling)
        else:
            async with open_channel(coordinate.address) as channel:
                metadata = grpc.aio.Metadata(("traceparent", caller.traceparent))
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                request = generation_pb2.GenerateRequest(text="import", max_tokens=3)
                assert [message async for message in stub.Generate(request, metadata=metadata)]
    return answer, list(exporter.get_finished_spans())


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def overlap(first: Sequence[ReadableSpan], second: Sequence[ReadableSpan]) -> int:
    """Nanoseconds in which a span of both runs."""
    return sum(
        max(0, min(a.end_time or 0, b.end_time or 0) - max(a.start_time or 0, b.start_time or 0))
        for a in first
        for b in second
    )


async def test_one_trace_spans_three_services_and_its_work_overlaps() -> None:
    answer, spans = await traced(DETAIL)
    assert answer is not None
    (root,) = named(spans, names.request_span("target"))
    (draft_session,) = named(spans, names.SPAN_DRAFT_SESSION)
    (verify_session,) = named(spans, names.SPAN_VERIFY_SESSION)
    assert root.parent is None
    assert answer.started.trace_id == format(root.context.trace_id, "032x")
    assert {span.context.trace_id for span in spans} == {root.context.trace_id}
    for session in (draft_session, verify_session):
        assert session.parent is not None
        assert session.parent.span_id == root.context.span_id
        assert session.attributes is not None
        assert session.attributes[names.SESSION_ID] == answer.started.request_id

    rounds, verify_steps = named(spans, names.SPAN_ROUND), named(spans, names.SPAN_VERIFY_STEP)
    draft_steps = named(spans, names.SPAN_DRAFT_STEP)
    assert len(rounds) == len(verify_steps) == answer.finished.speculation.num_rounds
    assert draft_steps
    assert {span.parent.span_id for span in verify_steps if span.parent} == {verify_session.context.span_id}
    assert {span.parent.span_id for span in draft_steps if span.parent} == {draft_session.context.span_id}
    assert overlap(verify_steps, draft_steps) > 0
    assert overlap(verify_steps, verify_steps[:1]) == (verify_steps[0].end_time or 0) - (
        verify_steps[0].start_time or 0
    )


async def test_the_root_span_says_what_was_asked_and_what_happened() -> None:
    answer, spans = await traced({})
    assert answer is not None
    (root,) = named(spans, names.request_span("target"))
    said = dict(root.attributes or {})
    speculation = answer.finished.speculation
    assert said[names.GEN_AI_OPERATION_NAME] == "text_completion"
    assert said[names.GEN_AI_REQUEST_MODEL] == "target"
    assert said[names.GEN_AI_REQUEST_SEED] == 7
    assert said[names.GEN_AI_REQUEST_TEMPERATURE] == pytest.approx(0.8)
    assert said[names.GEN_AI_REQUEST_MAX_TOKENS] == 60
    assert said[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert said[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 60
    assert said["outrider.num_rounds"] == speculation.num_rounds
    assert said["outrider.num_rollbacks"] == speculation.num_rollbacks
    assert len(said[names.ROUNDS_NUM_ACCEPTED]) == speculation.num_rounds
    assert sum(said[names.ROUNDS_NUM_ACCEPTED]) == speculation.num_accepted_tokens
    assert said[names.MODE] == "GENERATION_MODE_SPECULATIVE"
    assert answer.finished.mode is GenerationMode.SPECULATIVE
    assert {span.name for span in spans} == {root.name, names.SPAN_DRAFT_SESSION, names.SPAN_VERIFY_SESSION}


async def test_sessions_that_end_well_say_what_they_did_and_have_no_error() -> None:
    answer, spans = await traced({})
    assert answer is not None
    assert not [span.name for span in spans if names.ERROR_TYPE in (span.attributes or {})]
    (verify_session,) = named(spans, names.SPAN_VERIFY_SESSION)
    (draft_session,) = named(spans, names.SPAN_DRAFT_SESSION)
    verified, drafted = dict(verify_session.attributes or {}), dict(draft_session.attributes or {})
    speculation, timings = answer.finished.speculation, answer.finished.timings
    assert verified[names.SESSION_NUM_ROUNDS] == speculation.num_rounds
    assert verified[names.SESSION_NUM_TOKENS] == 60
    assert verified[names.SESSION_NUM_DRAFT_TOKENS] == speculation.num_draft_tokens
    assert verified[names.SESSION_NUM_ACCEPTED] == speculation.num_accepted_tokens
    assert verified[names.SESSION_STEP_MS] == pytest.approx(timings.verify_ms)
    assert verified[names.SESSION_WAIT_MS] == pytest.approx(timings.verify_wait_ms)
    assert verified[names.SESSION_QUEUE_MS] >= 0
    # The drafter may be gone before it hears of the last verdicts, and the coordinator before it reads the last nodes.
    assert 0 < drafted[names.SESSION_NUM_ROUNDS] <= speculation.num_rounds
    assert 0 < drafted[names.SESSION_NUM_TOKENS] <= 60
    assert drafted[names.SESSION_NUM_ROLLBACKS] <= speculation.num_rollbacks
    assert drafted[names.SESSION_NUM_NODES] >= speculation.num_drafted_nodes
    assert drafted[names.SESSION_STEP_MS] > 0
    assert drafted[names.SESSION_QUEUE_MS] >= 0


async def test_the_callers_trace_is_continued() -> None:
    _, spans = await traced({}, TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ""))
    assert {format(span.context.trace_id, "032x") for span in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    (root,) = named(spans, names.request_span("target"))
    assert root.parent is not None
    assert format(root.parent.span_id, "016x") == "b7ad6b7169203331"


async def test_metrics_count_what_the_answer_says(tmp_path: Path) -> None:
    reader = InMemoryMetricReader()
    telemetry = set_up("coordinator", environ={}, metric_reader=reader)
    async with (
        worker(bundled("target")) as verify,
        worker(bundled("draft"), draft=True) as draft,
        coordinator(verify.address, draft.address, telemetry=telemetry) as running,
    ):
        speculation = (await ask(running.client, "import os\n", max_tokens=40, ignore_eos=True)).finished.speculation
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: metric.data.data_points[0]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert found["outrider.rounds"].value == speculation.num_rounds
    assert found["outrider.spec_decode.num_draft_tokens"].value == speculation.num_draft_tokens
    assert found["outrider.spec_decode.num_accepted_tokens"].value == speculation.num_accepted_tokens
    assert found["outrider.rollbacks"].value == speculation.num_rollbacks
    assert found["outrider.stale.nodes"].value == speculation.num_stale_nodes
    assert found[names.METRIC_REQUEST_DURATION].count == 1
