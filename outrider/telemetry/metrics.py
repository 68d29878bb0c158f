"""The instruments: raw counts and durations. Rates are derived by whoever reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from outrider.core.coordinate.statistics import COUNTERS, SpeculationStatistics
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.telemetry import names

DURATION_BUCKETS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""Upper bounds in seconds, about six to a decade: the convention's own are too coarse for a small model."""


_LOAD_GAUGES: Final[Sequence[tuple[str, str, str, Callable[[WorkerLoad], int]]]] = (
    (names.METRIC_WORKER_SESSIONS, "{session}", "Sessions with room", lambda load: load.num_sessions),
    (names.METRIC_WORKER_QUEUED, "{session}", "Sessions that wait for room", lambda load: load.num_queued),
    (names.METRIC_WORKER_UNCOMPUTED_TOKENS, "{token}", "Tokens still to be read", lambda load: load.num_queued_tokens),
    (names.METRIC_WORKER_KV_TOKENS, "{token}", "Room for keys and values", lambda load: load.num_kv_tokens),
    (names.METRIC_WORKER_FREE_KV_TOKENS, "{token}", "Such room that is free", lambda load: load.num_free_kv_tokens),
)
_LOAD_COUNTERS: Final[Sequence[tuple[str, str, str, Callable[[WorkerLoad], int]]]] = (
    (names.METRIC_WORKER_PROMPT_TOKENS, "{token}", "Tokens asked to be read", lambda load: load.num_prompt_tokens),
    (
        names.METRIC_WORKER_CACHED_TOKENS,
        "{token}",
        "Those of them that had been read for another session",
        lambda load: load.num_cached_prompt_tokens,
    ),
)
"""What a worker's load says: name, unit, description, value."""


class Instruments:
    """A service's instruments. Without an exporter each of them does nothing."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._counts = {
            counter.field: meter.create_counter(counter.metric, counter.unit, counter.about)
            for counter in COUNTERS
            if counter.metric
        }
        self._replica_sessions = meter.create_up_down_counter(
            names.METRIC_REPLICA_SESSIONS, "{session}", "Sessions of this coordinator at a worker"
        )
        self._replica_moves = meter.create_counter(
            names.METRIC_REPLICA_MOVES,
            "{session}",
            "Sessions that one worker refused or lost and another took",
        )
        self._refused = meter.create_counter(
            names.METRIC_ACCESS_REFUSED, "{call}", "Calls and connections refused because of who made them"
        )
        self._usage = meter.create_counter(
            names.METRIC_TOKEN_USAGE, "{token}", "Tokens of prompts and answers, by whoever asked"
        )
        self._request_duration = meter.create_histogram(
            names.METRIC_REQUEST_DURATION,
            "s",
            "From the arrival of a request to its end",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self._time_to_first_token = meter.create_histogram(
            names.METRIC_TIME_TO_FIRST_TOKEN,
            "s",
            "From the arrival of a request to its first token",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )

    def count(self, statistics: SpeculationStatistics) -> None:
        """Adds what speculation did in one request, once, when the request has ended."""
        for field, instrument in self._counts.items():
            instrument.add(getattr(statistics, field))

    def add_sessions(self, change: int, *, service: str, address: str) -> None:
        """A session has come to a worker (`change` 1) or left it (-1)."""
        self._replica_sessions.add(change, {names.REPLICA_SERVICE: service, names.REPLICA_ADDRESS: address})

    def count_move(self, *, service: str) -> None:
        """A session goes to another worker of `service` because one has refused or lost it."""
        self._replica_moves.add(1, {names.REPLICA_SERVICE: service})

    def count_refusal(self, reason: str) -> None:
        """A caller was refused. `reason` comes from a closed set."""
        self._refused.add(1, {names.ACCESS_REASON: reason})

    def count_usage(self, name: str, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """A request of whoever has the token `name` has ended. There are no more names than a token file has."""
        for use, num_tokens in ((names.USE_PROMPT, num_prompt_tokens), (names.USE_ANSWER, num_generated_tokens)):
            self._usage.add(num_tokens, {names.TOKEN_NAME: name, names.TOKEN_USE: use})

    def observe_load(self, read: Callable[[], WorkerLoad], *, model: str) -> None:
        """Reports a worker's load whenever metrics are collected. `read` is called on the collector's thread."""
        labels = {names.GEN_AI_REQUEST_MODEL: model}

        def observe(field: Callable[[WorkerLoad], int]) -> Sequence[Callable[[CallbackOptions], list[Observation]]]:
            return [lambda _: [Observation(field(read()), labels)]]

        for name, unit, about, field in _LOAD_GAUGES:
            self._meter.create_observable_gauge(name, observe(field), unit, about)
        for name, unit, about, field in _LOAD_COUNTERS:
            self._meter.create_observable_counter(name, observe(field), unit, about)

    def observe_gate(self, is_open: Callable[[], bool]) -> None:
        """Reports whether speculation is paused whenever metrics are collected, on the collector's thread."""

        def observe(_: CallbackOptions) -> list[Observation]:
            return [Observation(int(not is_open()))]

        name, about = (
            names.METRIC_SPECULATION_PAUSED,
            "Whether the target decodes alone because speculation does not pay",
        )
        self._meter.create_observable_gauge(name, [observe], "1", about)

    def observe_memory(self, info: ModelInfo) -> None:
        """Reports a worker's memory limit and the bound of its KV cache whenever metrics are collected."""
        labels = {names.GEN_AI_REQUEST_MODEL: info.name}
        for name, about, num_bytes in (
            (names.METRIC_WORKER_MEMORY_LIMIT, "Most memory that the worker may use", info.memory_limit_bytes),
            (names.METRIC_WORKER_KV_MEMORY, "Most memory for keys and values", info.kv_cache_bytes),
        ):
            observed = [Observation(num_bytes, labels)]
            self._meter.create_observable_gauge(name, [lambda _, observed=observed: observed], "By", about)

    def record_first_token(self, seconds: float, *, model: str) -> None:
        """The first token of a request was committed, `seconds` after its arrival."""
        self._time_to_first_token.record(seconds, _labels(model))

    def record_request(self, seconds: float, *, model: str, error_type: str | None = None) -> None:
        """A request ended, `seconds` after its arrival; `error_type` is the class of the error that ended it, if any.

        Both labels come from closed sets, never from what a caller sent.
        """
        labels = _labels(model)
        if error_type is not None:
            labels[names.ERROR_TYPE] = error_type
        self._request_duration.record(seconds, labels)


def _labels(model: str) -> dict[str, str]:
    return {
        names.GEN_AI_OPERATION_NAME: names.OPERATION_TEXT_COMPLETION,
        names.GEN_AI_PROVIDER_NAME: names.PROVIDER_OUTRIDER,
        names.GEN_AI_REQUEST_MODEL: model,
    }
