"""What a plain OTLP receiver gets of requests over all three services: one trace of each, and all that is listed."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack, aclosing

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from coordinator.caller import CALLER, Caller
from outrider.core.protocol.options import GenerationOptions
from outrider.core.protocol.sampling import SamplingParams
from outrider.telemetry import names
from outrider.telemetry.setup import set_up
from outrider.telemetry.spans import ALWAYS, SPANS, SpanKind
from outrider.token_file import TokenEntry
from tests.e2e.stack import bundled, coordinator, worker
from tests.telemetry.collector import Collector

ASKED = GenerationOptions(
    max_tokens=30,
    ignore_eos=True,
    num_completions=2,
    stop=["what is never written"],
    sampling=SamplingParams(temperature=0.8, seed=7),
)

ELSEWHERE = {(names.SPAN_VERIFY_SESSION, names.ERROR_TYPE), (names.SPAN_DRAFT_SESSION, names.ERROR_TYPE)}
"""What no request of this test says: tests/worker/test_trace.py has sessions that end by an error."""


def kind_of(span: Span) -> SpanKind:
    (kind,) = [each for each in SPANS if span.name == each.name or span.name.startswith(f"{each.name} ")]
    return kind


async def received(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Span]]:
    """By service the spans of one request of two completions, and of one that is left in its middle."""
    for variable, value in collector.environ.items():
        monkeypatch.setenv(variable, value)
    environ = collector.environ | {"OUTRIDER_TRACE_DETAIL": "round", "OTEL_METRICS_EXPORTER": "none"}
    verify, draft, coordinate = (set_up(name, environ=environ) for name in ("verify", "draft", "coordinator"))
    async with AsyncExitStack() as running:
        verifier = await running.enter_async_context(worker(bundled("target"), telemetry=verify))
        drafter = await running.enter_async_context(worker(bundled("draft"), draft=True, telemetry=draft))
        stack = await running.enter_async_context(coordinator(verifier.address, drafter.address, telemetry=coordinate))
        CALLER.set(Caller(TokenEntry(name="ann", sha256="0" * 64)))
        async with aclosing(stack.service.generate("import os\n", ASKED)) as events:
            assert [event async for event in events]
        async with aclosing(stack.service.generate("import os\n", ASKED)) as events:
            await anext(events)
    for telemetry in (coordinate, verify, draft):
        telemetry.shut_down()
    found: defaultdict[str, list[Span]] = defaultdict(list)
    for exported in map(ExportTraceServiceRequest.FromString, collector.received["/v1/traces"]):
        for resource in exported.resource_spans:
            (service,) = [
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            ]
            found[service] += [span for scope in resource.scope_spans for span in scope.spans]
    return found


async def test_every_span_and_attribute_is_sent_that_is_listed_and_no_other(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await received(collector, monkeypatch)
    assert found.keys() == {"coordinator", "verify", "draft"}
    spans = [span for each in found.values() for span in each]
    seen: set[tuple[str, str]] = set()
    for span in spans:
        kind = kind_of(span)
        said = {each.key for each in span.attributes}
        always = {name for name, when in kind.attributes.items() if when == ALWAYS}
        assert always <= said, f"{span.name} lacks {always - said}"
        assert said <= kind.attributes.keys(), f"{span.name} says what is not listed: {said - kind.attributes.keys()}"
        seen |= {(kind.name, name) for name in said}
        for event in span.events:
            assert {each.key for each in event.attributes} == {*kind.events[event.name]}
            seen.add((kind.name, event.name))
    listed = {(kind.name, name) for kind in SPANS for name in (*kind.attributes, *kind.events)}
    assert listed - seen == ELSEWHERE

    roots = [span for span in found["coordinator"] if kind_of(span).name == names.OPERATION_TEXT_COMPLETION]
    assert len({span.trace_id for span in roots}) == len(roots) == 2
    assert {span.trace_id for span in spans} == {span.trace_id for span in roots}
    parent_of = {span.span_id: span.parent_span_id for span in spans}
    sessions = [span for span in spans if kind_of(span).name in (names.SPAN_VERIFY_SESSION, names.SPAN_DRAFT_SESSION)]
    assert {parent_of[span.span_id] for span in sessions} <= {span.span_id for span in roots}
    assert all(parent_of[span.span_id] in parent_of for span in spans if span not in roots)


def test_no_span_is_listed_twice_and_each_belongs_to_a_service() -> None:
    assert len({kind.name for kind in SPANS}) == len(SPANS)
    assert {kind.service for kind in SPANS} == {"coordinator", "verify service", "draft service"}
