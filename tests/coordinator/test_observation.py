"""What telemetry sees of one request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from coordinator.config import CoordinatorConfig
from coordinator.emission import EmittedTokens
from coordinator.observation import Observation
from coordinator.request import settle_token_ids
from outrider.core.coordinate.events import Finished, GenerationMode, Timings, Usage
from outrider.core.coordinate.session import Emit
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.core.protocol.messages import NOT_TRACED, FinishReason, TokenOrigin, TraceContext
from outrider.core.protocol.options import GenerationOptions
from outrider.telemetry import names
from outrider.telemetry.setup import set_up

from .script import TARGET

ROUND = EmittedTokens(
    Emit(
        position=3,
        token_ids=(4, 5),
        origins=(TokenOrigin.ACCEPTED, TokenOrigin.RECOVERED),
        rolled_back=True,
        num_draft_tokens=3,
        num_accepted=1,
        logprobs=(),
    ),
    ["e", "f"],
)


class Seen:
    """Telemetry that keeps what it is told."""

    def __init__(self, **environ: str) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.telemetry = set_up(
            "coordinator", environ=environ, span_exporter=self._exporter, metric_reader=self._reader
        )

    def observation(
        self,
        caller: TraceContext = NOT_TRACED,
        num_completions: int = 1,
        token_name: str = "",
        chat_template: str = "",
    ) -> Observation:
        options = GenerationOptions(max_tokens=8, num_completions=num_completions)
        request = settle_token_ids([1, 2, 3], options, CoordinatorConfig(), TARGET)  # pyright: ignore[reportCallIssue]
        return Observation(self.telemetry, "r1", request, TARGET, caller, token_name, chat_template)

    @property
    def spans(self) -> dict[str, list[ReadableSpan]]:
        found: dict[str, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    @property
    def root(self) -> Mapping[str, Any]:
        (span,) = self.spans[names.request_span("target")]
        return dict(span.attributes or {})

    def all_points(self) -> dict[str, list[Any]]:
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            each.name: list(each.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for each in scope.metrics
        }

    def count(self, metric: str) -> float:
        points = self.all_points().get(metric, [])
        return sum(point.value if hasattr(point, "value") else point.count for point in points)

    def labels(self, metric: str) -> Mapping[str, Any]:
        (point,) = self.all_points()[metric]
        return point.attributes


def finished(completion: int = 0, mode: GenerationMode = GenerationMode.SPECULATIVE, reason: str = "") -> Finished:
    statistics = SpeculationStatistics(num_rounds=2)
    return Finished(
        reason=FinishReason.LENGTH,
        mode=mode,
        mode_reason=reason,
        text="",
        usage=Usage(3, 4, 1),
        speculation=statistics.speculation,
        timings=Timings(1.0, 2.0, 3.0, 4.0, 5.0),
        completion=completion,
    )


def test_a_request_that_ends_well_is_told_with_its_counts() -> None:
    seen = Seen()
    with seen.observation() as observation:
        observation.on_round(0, ROUND)
        observation.on_round(0, ROUND)
        observation.on_finish(finished(), SpeculationStatistics(num_rounds=2, num_draft_tokens=6), "small")
    assert seen.root[names.MODE] == "GENERATION_MODE_SPECULATIVE"
    assert seen.root[names.DRAFT_MODEL] == "small"
    assert seen.root[names.GEN_AI_RESPONSE_ID] == "r1"
    assert seen.root[names.BATCH_INVARIANT] is False
    assert seen.root[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert (seen.root["outrider.num_rounds"], seen.root["outrider.num_draft_tokens"]) == (2, 6)
    assert seen.count("outrider.spec_decode.num_draft_tokens") == 6
    assert seen.count(names.METRIC_REQUEST_DURATION) == 1
    assert seen.count(names.METRIC_TIME_TO_FIRST_TOKEN) == 1, "it is that of the first round alone"
    assert names.SPAN_ROUND not in seen.spans


def test_rounds_are_spans_where_that_is_asked_for() -> None:
    seen = Seen(OUTRIDER_TRACE_DETAIL="round")
    with seen.observation() as observation:
        observation.on_round(0, ROUND)
        observation.on_round(0, ROUND)
    rounds = [dict(span.attributes or {}) for span in seen.spans[names.SPAN_ROUND]]
    assert [each[names.ROUND_INDEX] for each in rounds] == [0, 1]
    assert (rounds[0][names.ROUND_NUM_DRAFT_TOKENS], rounds[0][names.ROUND_NUM_ACCEPTED]) == (3, 1)
    assert rounds[0][names.ROUND_ROLLED_BACK] is True


def test_placements_are_events_and_rounds_have_their_times() -> None:
    seen = Seen()
    with seen.observation(token_name="ann") as observation:
        observation.on_placed("service", "v:1", [])
        observation.on_placed("service", "v:2", ["v:1"])
        observation.on_round(0, ROUND)
        observation.on_round(0, ROUND)
        observation.on_finish(finished(), SpeculationStatistics(num_rounds=2), "small", "lost")
    (span,) = seen.spans[names.request_span("target")]
    assert [(event.name, dict(event.attributes or {})[names.REPLICA_INSTEAD_OF]) for event in span.events] == [
        (names.EVENT_PLACED, ()),
        (names.EVENT_PLACED, ("v:1",)),
    ]
    first, second = seen.root[names.ROUNDS_MS]
    assert 0.0 <= first <= second
    assert seen.root[names.TOKEN_NAME] == "ann"
    assert seen.labels(names.METRIC_COMPLETIONS)[names.DRAFTER] == "lost"


def test_scored_tokens_are_told_by_who_asked_and_by_template() -> None:
    seen = Seen()
    with seen.observation(token_name="ann", chat_template="default-01234567") as observation:
        observation.on_finish(finished(), SpeculationStatistics(num_draft_tokens=6, num_accepted_tokens=4), "small")
    scored = seen.all_points()[names.METRIC_SCORED_TOKENS]
    assert {point.attributes[names.OUTCOME]: point.value for point in scored} == {"accepted": 4, "rejected": 2}
    for point in scored:
        assert point.attributes[names.TOKEN_NAME] == "ann"
        assert point.attributes[names.CHAT_TEMPLATE] == "default-01234567"
        assert point.attributes[names.SAMPLING] == "greedy"


def test_durations_are_shown_with_their_trace() -> None:
    seen = Seen()
    with seen.observation() as observation:
        for _ in range(3):
            observation.on_round(0, ROUND)
        trace_id = observation.trace_id
    shown = {
        metric: {f"{each.trace_id:032x}" for point in points for each in point.exemplars}
        for metric, points in seen.all_points().items()
        if hasattr(points[0], "exemplars") and hasattr(points[0], "bucket_counts")
    }
    durations = (names.METRIC_TIME_TO_FIRST_TOKEN, names.METRIC_INTER_TOKEN_LATENCY, names.METRIC_REQUEST_DURATION)
    assert shown == {name: {trace_id} for name in durations}


def test_of_several_completions_the_first_unusual_one_gives_the_mode() -> None:
    seen = Seen()
    with seen.observation(num_completions=3) as observation:
        degraded = finished(1, GenerationMode.DEGRADED, "it was lost")
        observation.on_finish(degraded, SpeculationStatistics(num_rounds=2), "b")
        observation.on_finish(finished(0), SpeculationStatistics(num_rounds=3), "a")
        observation.on_finish(finished(2), SpeculationStatistics(num_rounds=1), "")
    assert (seen.root[names.MODE], seen.root[names.MODE_REASON]) == ("GENERATION_MODE_DEGRADED", "it was lost")
    assert seen.root[names.COMPLETIONS_NUM_ROUNDS] == (3, 2, 1)
    assert seen.root[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 12
    assert seen.root[names.DRAFT_MODEL] == "a,b"


def test_the_callers_trace_goes_on_and_is_handed_to_the_workers() -> None:
    seen = Seen()
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with seen.observation(TraceContext(f"00-{trace_id}-b7ad6b7169203331-01", "")) as observation:
        assert observation.trace_id == trace_id
        assert trace_id in observation.trace.traceparent


def test_an_error_is_told_by_its_class_and_only_ours_with_its_text() -> None:
    seen = Seen()
    with pytest.raises(SlotsExhaustedError), seen.observation():
        raise SlotsExhaustedError("every slot is taken")
    (span,) = seen.spans[names.request_span("target")]
    assert seen.root[names.ERROR_TYPE] == "SlotsExhaustedError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "every slot is taken")
    other = Seen()
    with pytest.raises(KeyError), other.observation():
        raise KeyError("secret")
    (span,) = other.spans[names.request_span("target")]
    assert span.status.description is None


@pytest.mark.parametrize("left", [asyncio.CancelledError, GeneratorExit])
def test_a_caller_who_leaves_has_cancelled_however_the_iteration_ends(left: type[BaseException]) -> None:
    seen = Seen()
    with pytest.raises(left), seen.observation():
        raise left
    assert seen.root[names.ERROR_TYPE] == "CancelledError"
