"""Instruments as a reader sees them."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.telemetry import names
from outrider.telemetry.metrics import Asked
from outrider.telemetry.setup import set_up


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    [resource] = data.resource_metrics
    [scope] = resource.scope_metrics
    return {metric.name: list(metric.data.data_points) for metric in scope.metrics}


def test_counts_add_up_over_requests() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("coordinator", environ={}, metric_reader=reader).instruments
    statistics = SpeculationStatistics(
        num_rounds=3,
        num_draft_tokens=12,
        num_accepted_tokens=7,
        num_rollbacks=2,
        num_stale_nodes=5,
        num_rejections=4,
        num_recovered_token_hits=3,
        num_bonuses=6,
        num_bonus_hits=1,
        num_prompt_lookup_tokens=9,
        num_accepted_prompt_lookup_tokens=8,
        num_prediction_tokens=11,
        num_accepted_prediction_tokens=10,
        num_drafted_nodes=20,
        verify_ms=1000.0,
        verify_wait_ms=500.0,
        draft_ms=250.0,
        drafted_by_round=[6, 6, 0],
    )
    instruments.count(statistics, model="target", draft_model="draft")
    instruments.count(statistics, model="target", draft_model="draft")
    assert {name: [point.value for point in each] for name, each in points(reader).items()} == {
        "outrider.rounds": [6],
        "outrider.spec_decode.num_draft_tokens": [24],
        "outrider.spec_decode.num_accepted_tokens": [14],
        "outrider.rollbacks": [4],
        "outrider.stale.nodes": [10],
        "outrider.rejections": [8],
        "outrider.recovered_token.hits": [6],
        "outrider.bonuses": [12],
        "outrider.bonus.hits": [2],
        "outrider.prompt_lookup.tokens": [18],
        "outrider.accepted.prompt_lookup.tokens": [16],
        "outrider.prediction.tokens": [22],
        "outrider.accepted.prediction.tokens": [20],
        "outrider.drafted.nodes": [40],
        "outrider.verify.time": [2.0],
        "outrider.verify.wait.time": [1.0],
        "outrider.draft.time": [0.5],
        "outrider.spec_decode.num_drafts": [4],
        "outrider.scored.tokens": [14, 10],
    }


def test_scored_tokens_are_told_by_whatever_acceptance_depends_on() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("coordinator", environ={}, metric_reader=reader).instruments
    statistics = SpeculationStatistics(num_draft_tokens=10, num_accepted_tokens=7)
    instruments.count(statistics, model="target", draft_model="draft")
    asked = Asked(token_name="ann", chat_template="default-01234567", greedy=False)
    instruments.count(statistics, model="target", draft_model="draft", asked=asked)
    labels = (names.TOKEN_NAME, names.CHAT_TEMPLATE, names.SAMPLING, names.OUTCOME)
    scored = points(reader)[names.METRIC_SCORED_TOKENS]
    assert {tuple(point.attributes[label] for label in labels): point.value for point in scored} == {
        ("", "", "greedy", "accepted"): 7,
        ("", "", "greedy", "rejected"): 3,
        ("ann", "default-01234567", "sampled", "accepted"): 7,
        ("ann", "default-01234567", "sampled", "rejected"): 3,
    }


def test_sessions_are_counted_by_worker() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("coordinator", environ={}, metric_reader=reader).instruments
    for change, address in ((1, "a:1"), (1, "b:1"), (1, "b:1"), (-1, "a:1")):
        instruments.add_sessions(change, service="outrider.v1.VerifyService", address=address)
    instruments.count_move(service="outrider.v1.DraftService")
    found = points(reader)
    sessions = found[names.METRIC_REPLICA_SESSIONS]
    assert {point.attributes[names.REPLICA_ADDRESS]: point.value for point in sessions} == {"a:1": 0, "b:1": 2}
    [moves] = found[names.METRIC_REPLICA_MOVES]
    assert (moves.value, moves.attributes) == (1, {names.REPLICA_SERVICE: "outrider.v1.DraftService"})


def test_milliseconds_fall_into_buckets_of_their_own() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("coordinator", environ={}, metric_reader=reader).instruments
    for milliseconds in (1.5, 2.5, 4, 6, 9):
        instruments.record_first_token(milliseconds / 1000, model="target")
    [first_token] = points(reader)[names.METRIC_TIME_TO_FIRST_TOKEN]
    assert max(first_token.bucket_counts) == 1
    assert first_token.count == 5


def test_failed_requests_are_told_apart() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("coordinator", environ={}, metric_reader=reader).instruments
    instruments.record_request(0.5, model="target")
    instruments.record_request(0.1, model="target", error_type="SlotsExhaustedError")
    durations = points(reader)[names.METRIC_REQUEST_DURATION]
    assert {point.attributes.get(names.ERROR_TYPE): point.sum for point in durations} == {
        None: 0.5,
        "SlotsExhaustedError": 0.1,
    }


def test_a_workers_load_is_read_when_metrics_are_collected() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("verify", environ={}, metric_reader=reader).instruments
    loads = iter(range(100))

    def read() -> WorkerLoad:
        return WorkerLoad("me", next(loads), 2, 300, 4096, 1024, 5.0, 700, 60)

    instruments.observe_load(read, model="target")
    found = points(reader)
    assert {name: point.value for name, [point] in found.items() if name != names.METRIC_WORKER_SESSIONS} == {
        names.METRIC_WORKER_QUEUED: 2,
        names.METRIC_WORKER_UNCOMPUTED_TOKENS: 300,
        names.METRIC_WORKER_KV_TOKENS: 4096,
        names.METRIC_WORKER_FREE_KV_TOKENS: 1024,
        names.METRIC_WORKER_KV_USAGE: 0.75,
        names.METRIC_WORKER_PROMPT_TOKENS: 700,
        names.METRIC_WORKER_CACHED_TOKENS: 60,
    }
    [first] = found[names.METRIC_WORKER_SESSIONS]
    [second] = points(reader)[names.METRIC_WORKER_SESSIONS]
    assert second.value > first.value
    assert first.attributes == {names.GEN_AI_REQUEST_MODEL: "target"}


def test_what_a_workers_steps_run_on_is_told_as_it_is_at_present() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("verify", environ={}, metric_reader=reader).instruments
    info = ModelInfo("target", "llama", 512, "", (0,), 64, 4, 0, "float32", "cpu", 2, "")
    told = [info]
    instruments.observe_execution(lambda: told[-1])
    assert reader.get_metrics_data() is None, "a drafter without a model runs on nothing"
    for forward_pass in ("native", "compiled"):
        told.append(info._replace(attention="native", forward_pass=forward_pass, token_choice="native"))
        [point] = points(reader)[names.METRIC_WORKER_EXECUTION]
        assert point.value == 1
        assert point.attributes == {
            names.GEN_AI_REQUEST_MODEL: "target",
            names.ATTENTION: "native",
            names.FORWARD_PASS: forward_pass,
            names.TOKEN_CHOICE: "native",
        }


def test_a_workers_memory_limit_and_the_bound_of_its_kv_cache_are_reported() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("verify", environ={}, metric_reader=reader).instruments
    info = ModelInfo("target", "llama", 512, "", (0,), 64, 4, 0, "float32", "cpu", 2, "", "", 8 << 30, 3 << 30)
    instruments.observe_memory(info)
    assert {name: (point.value, point.attributes) for name, [point] in points(reader).items()} == {
        names.METRIC_WORKER_MEMORY_LIMIT: (8 << 30, {names.GEN_AI_REQUEST_MODEL: "target"}),
        names.METRIC_WORKER_KV_MEMORY: (3 << 30, {names.GEN_AI_REQUEST_MODEL: "target"}),
    }


def test_whether_speculation_is_let_go_is_told_as_it_is_at_present() -> None:
    reader = InMemoryMetricReader()
    instruments = set_up("coordinator", environ={}, metric_reader=reader).instruments
    is_open = True
    instruments.observe_gate(lambda: is_open)
    assert [point.value for point in points(reader)[names.METRIC_SPECULATION_PAUSED]] == [0]
    is_open = False
    assert [point.value for point in points(reader)[names.METRIC_SPECULATION_PAUSED]] == [1]
