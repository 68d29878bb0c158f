"""The instruments: raw counts and durations. Rates are derived by whoever reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from outrider.core.coordinate.events import Usage
from outrider.core.coordinate.statistics import COUNTERS, SpeculationStatistics, accepted_by_position
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.telemetry import names

DURATION_BUCKETS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""Upper bounds in seconds, about six to a decade: the convention's own are too coarse for a small model."""


_LOAD_GAUGES: Final[Sequence[tuple[str, str, str, Callable[[WorkerLoad], float]]]] = (
    (names.METRIC_WORKER_SESSIONS, "{session}", "Sessions with room", lambda load: load.num_sessions),
    (names.METRIC_WORKER_QUEUED, "{session}", "Sessions that wait for room", lambda load: load.num_queued),
    (names.METRIC_WORKER_UNCOMPUTED_TOKENS, "{token}", "Tokens still to be read", lambda load: load.num_queued_tokens),
    (names.METRIC_WORKER_KV_TOKENS, "{token}", "Room for keys and values", lambda load: load.num_kv_tokens),
    (names.METRIC_WORKER_FREE_KV_TOKENS, "{token}", "Such room that is free", lambda load: load.num_free_kv_tokens),
    (
        names.METRIC_WORKER_KV_USAGE,
        "",
        "The part of the room for keys and values that is in use",
        lambda load: 1.0 - load.num_free_kv_tokens / load.num_kv_tokens if load.num_kv_tokens else 0.0,
    ),
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

POSITIONS_MAX: Final = 64
"""Positions of a draft that are told apart; what is accepted beyond is told with the last of them."""


class StepTime(NamedTuple):
    """What the steps that went one way through the model have taken so far."""

    path: str
    num_steps: int
    seconds: float


class Asked(NamedTuple):
    """Of a request what acceptance may depend on. All of it comes from closed sets."""

    token_name: str = ""
    """Of whoever asked."""
    chat_template: str = ""
    """See `ChatTemplate.title`."""
    greedy: bool = True


NOBODY: Final = Asked()
"""Of whom nothing is known."""


class Instruments:
    """A service's instruments. Without an exporter each of them does nothing.

    The `context` of a duration is that of its request's span: histograms may show it as an example.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._counts = {
            counter.field: meter.create_counter(counter.metric, counter.unit, counter.about)
            for counter in COUNTERS
            if counter.metric
        }
        self._num_drafts = meter.create_counter(
            names.METRIC_NUM_DRAFTS, "{draft}", "Verdicts on one draft token or more"
        )
        self._scored = meter.create_counter(
            names.METRIC_SCORED_TOKENS, "{token}", "Draft tokens that the target scored, by who asked and how"
        )
        self._accepted_per_position = meter.create_counter(
            names.METRIC_ACCEPTED_PER_POSITION, "{token}", "Draft tokens accepted, by their position in the draft"
        )
        self._times = {
            field: meter.create_counter(name, "s", about)
            for field, name, about in (
                ("verify_ms", names.METRIC_VERIFY_TIME, "Verify steps that worked for a request"),
                ("verify_wait_ms", names.METRIC_VERIFY_WAIT_TIME, "Verifiers' waits from a verdict to the next step"),
                ("draft_ms", names.METRIC_DRAFT_TIME, "Draft steps that worked for a request"),
            )
        }
        self._prompt_tokens = meter.create_counter(names.METRIC_PROMPT_TOKENS, "{token}", "Tokens of prompts")
        self._generation_tokens = meter.create_counter(names.METRIC_GENERATION_TOKENS, "{token}", "Tokens generated")
        self._completions = meter.create_counter(
            names.METRIC_COMPLETIONS, "{completion}", "Completions that ended by their own rules, by how they were made"
        )
        self._inter_token_latency = meter.create_histogram(
            names.METRIC_INTER_TOKEN_LATENCY,
            "s",
            "From one round's tokens of a completion to the next one's",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
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

    def count(self, statistics: SpeculationStatistics, *, model: str, draft_model: str, asked: Asked = NOBODY) -> None:
        """Adds what speculation did in one completion, once, when it has ended; `draft_model` is empty if none drafted.

        Both labels are names of models that workers serve, never what a caller sent.
        """
        labels = {names.GEN_AI_REQUEST_MODEL: model, names.DRAFT_MODEL: draft_model}
        for field, instrument in self._counts.items():
            instrument.add(getattr(statistics, field), labels)
        for field, instrument in self._times.items():
            instrument.add(getattr(statistics, field) / 1000.0, labels)
        self._num_drafts.add(sum(1 for num_drafted in statistics.drafted_by_round if num_drafted), labels)
        for_whom = labels | {
            names.TOKEN_NAME: asked.token_name,
            names.CHAT_TEMPLATE: asked.chat_template,
            names.SAMPLING: names.SAMPLING_GREEDY if asked.greedy else names.SAMPLING_SAMPLED,
        }
        num_accepted = statistics.num_accepted_tokens
        self._scored.add(num_accepted, for_whom | {names.OUTCOME: names.OUTCOME_ACCEPTED})
        num_rejected = statistics.num_draft_tokens - num_accepted
        self._scored.add(num_rejected, for_whom | {names.OUTCOME: names.OUTCOME_REJECTED})
        for position, num_accepted in enumerate(accepted_by_position(statistics.acceptance_histogram)):
            place = {names.POSITION: str(min(position, POSITIONS_MAX - 1))}
            self._accepted_per_position.add(num_accepted, labels | place)

    def count_completion(self, usage: Usage, *, model: str, mode: str, drafter: str = "") -> None:
        """A completion ended by its own rules, made as `mode` says, with its drafter in the state of that name."""
        labels = {names.GEN_AI_REQUEST_MODEL: model}
        self._prompt_tokens.add(usage.num_prompt_tokens, labels)
        self._generation_tokens.add(usage.num_generated_tokens, labels)
        self._completions.add(1, labels | {names.MODE: mode} | ({names.DRAFTER: drafter} if drafter else {}))

    def record_round(self, seconds: float, *, model: str, context: Context | None = None) -> None:
        """A round's tokens of a completion left, `seconds` after those of the round before."""
        self._inter_token_latency.record(seconds, {names.GEN_AI_REQUEST_MODEL: model}, context)

    def observe_requests(self, num_running: Callable[[], int]) -> None:
        """Reports how many completions run whenever metrics are collected, on the collector's thread."""

        def observe(_: CallbackOptions) -> list[Observation]:
            return [Observation(num_running())]

        self._meter.create_observable_gauge(
            names.METRIC_REQUESTS_RUNNING, [observe], "{completion}", "Completions that run"
        )

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

        def observe(field: Callable[[WorkerLoad], float]) -> Sequence[Callable[[CallbackOptions], list[Observation]]]:
            return [lambda _: [Observation(field(read()), labels)]]

        for name, unit, about, field in _LOAD_GAUGES:
            self._meter.create_observable_gauge(name, observe(field), unit, about)
        for name, unit, about, field in _LOAD_COUNTERS:
            self._meter.create_observable_counter(name, observe(field), unit, about)

    def observe_steps(self, read: Callable[[], Iterable[StepTime]], *, model: str) -> None:
        """Reports a worker's steps whenever metrics are collected. `read` is called on the collector's thread."""

        def observe(field: str) -> Sequence[Callable[[CallbackOptions], list[Observation]]]:
            return [
                lambda _: [
                    Observation(getattr(each, field), {names.GEN_AI_REQUEST_MODEL: model, names.PATH: each.path})
                    for each in read()
                ]
            ]

        for name, field, unit, about in (
            (names.METRIC_STEPS, "num_steps", "{step}", "Steps, by their way through the model"),
            (names.METRIC_STEP_TIME, "seconds", "s", "The time that they took"),
        ):
            self._meter.create_observable_counter(name, observe(field), unit, about)

    def observe_gate(self, is_open: Callable[[], bool]) -> None:
        """Reports whether speculation is paused whenever metrics are collected, on the collector's thread."""

        def observe(_: CallbackOptions) -> list[Observation]:
            return [Observation(int(not is_open()))]

        name, about = (
            names.METRIC_SPECULATION_PAUSED,
            "Whether drafters rest because drafts do not pay",
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

    def observe_execution(self, read: Callable[[], ModelInfo]) -> None:
        """Reports what a worker's steps run on whenever metrics are collected: always 1, what counts are the labels."""

        def observe(_: CallbackOptions) -> list[Observation]:
            info = read()
            if not info.forward_pass:
                return []
            labels = {
                names.GEN_AI_REQUEST_MODEL: info.name,
                names.ATTENTION: info.attention,
                names.FORWARD_PASS: info.forward_pass,
                names.TOKEN_CHOICE: info.token_choice,
            }
            return [Observation(1, labels)]

        self._meter.create_observable_gauge(
            names.METRIC_WORKER_EXECUTION, [observe], "1", "What a worker's steps run on, by its labels"
        )

    def record_first_token(self, seconds: float, *, model: str, context: Context | None = None) -> None:
        """The first token of a request was committed, `seconds` after its arrival."""
        self._time_to_first_token.record(seconds, _labels(model), context)

    def record_request(
        self, seconds: float, *, model: str, error_type: str | None = None, context: Context | None = None
    ) -> None:
        """A request ended, `seconds` after its arrival; `error_type` is the class of the error that ended it, if any.

        Both labels come from closed sets, never from what a caller sent.
        """
        labels = _labels(model)
        if error_type is not None:
            labels[names.ERROR_TYPE] = error_type
        self._request_duration.record(seconds, labels, context)


def _labels(model: str) -> dict[str, str]:
    return {
        names.GEN_AI_OPERATION_NAME: names.OPERATION_TEXT_COMPLETION,
        names.GEN_AI_PROVIDER_NAME: names.PROVIDER_OUTRIDER,
        names.GEN_AI_REQUEST_MODEL: model,
    }
