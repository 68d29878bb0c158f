"""What telemetry sees of one request: the root span, its rounds, and the metrics at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

from coordinator.emission import EmittedTokens
from coordinator.request import GenerationRequest
from outrider.core.coordinate.events import Finished
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import NOT_TRACED, ModelInfo, TraceContext
from outrider.telemetry import names
from outrider.telemetry.attributes import request_attributes, speculation_attributes
from outrider.telemetry.metrics import Asked
from outrider.telemetry.setup import Telemetry
from outrider.telemetry.tracing import extract, inject, record_span, within


class _Ended(NamedTuple):
    """A completion that ended by its own rules."""

    finished: Finished
    statistics: SpeculationStatistics
    draft_model: str

    @property
    def mode(self) -> str:
        """As the proto names it."""
        return f"GENERATION_MODE_{self.finished.mode.name}"


class Observation:
    """Use it as a context manager around one request."""

    def __init__(
        self,
        telemetry: Telemetry,
        request_id: str,
        request: GenerationRequest,
        target: ModelInfo,
        caller: TraceContext = NOT_TRACED,
        token_name: str = "",
        chat_template: str = "",
    ) -> None:
        """The span continues the `caller`'s trace, if there is one. `token_name` says who asks, `chat_template` what
        made the prompt; either may be empty."""
        self._telemetry = telemetry
        self._asked = Asked(token_name, chat_template, request.sampling.greedy)
        self._model = target.name
        self._span = telemetry.tracer.start_span(
            names.request_span(target.name),
            extract(caller),
            kind=SpanKind.SERVER,
            attributes=request_attributes(
                target.name,
                request.sampling,
                request.max_length - len(request.prompt_token_ids),
                request.stop,
                request.num_completions,
            ),
        )
        self._span.set_attribute(names.GEN_AI_RESPONSE_ID, request_id)
        self._span.set_attribute(names.BATCH_INVARIANT, target.batch_invariant)
        if token_name:
            self._span.set_attribute(names.TOKEN_NAME, token_name)
        self._context = within(self._span)
        self._records_rounds = telemetry.records_rounds(self._span)
        self._started = time.monotonic()
        self._has_token = False
        self._rounds: list[list[float]] = [[] for _ in range(request.num_completions)]
        """For each completion, by round, the seconds from the request's arrival until its tokens left."""
        self._longest_gap = 0.0
        """Between two rounds of a completion, in seconds."""
        self._last_round_ns = [time.time_ns()] * request.num_completions
        self._num_rounds = [0] * request.num_completions
        self._ended: dict[int, _Ended] = {}

    @property
    def trace(self) -> TraceContext:
        """The context for the workers' spans."""
        return inject(self._span)

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, or empty if the request is not traced."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else ""

    def on_round(self, completion: int, emitted: EmittedTokens) -> None:
        """A round's tokens are on their way to the client."""
        instruments, rounds = self._telemetry.instruments, self._rounds[completion]
        moment = time.monotonic() - self._started
        if not self._has_token:
            self._has_token = True
            instruments.record_first_token(moment, model=self._model, context=self._context)
        if rounds:
            gap = moment - rounds[-1]
            # An exemplar costs as much as the rest of a record: the longest gaps are those that are looked for.
            is_longest = gap > self._longest_gap
            self._longest_gap = max(gap, self._longest_gap)
            instruments.record_round(gap, model=self._model, context=self._context if is_longest else None)
        rounds.append(moment)
        if not self._records_rounds:
            return
        now = time.time_ns()
        emit = emitted.emit
        attributes = {
            names.ROUND_COMPLETION: completion,
            names.ROUND_INDEX: self._num_rounds[completion],
            names.ROUND_POSITION: emit.position,
            names.ROUND_NUM_DRAFT_TOKENS: emit.num_draft_tokens,
            names.ROUND_NUM_ACCEPTED: emit.num_accepted,
            names.ROUND_ROLLED_BACK: emit.rolled_back,
        }
        started = self._last_round_ns[completion]
        record_span(self._telemetry.tracer, names.SPAN_ROUND, self._context, started, now, attributes)
        self._last_round_ns[completion] = now
        self._num_rounds[completion] += 1

    def on_placed(self, service: str, address: str, instead_of: Sequence[str]) -> None:
        """A session of the request was placed at the worker of that service and address, after those before."""
        if self._span.is_recording():
            self._span.add_event(
                names.EVENT_PLACED,
                {
                    names.REPLICA_SERVICE: service,
                    names.REPLICA_ADDRESS: address,
                    names.REPLICA_INSTEAD_OF: tuple(instead_of),
                },
            )

    def on_finish(
        self, finished: Finished, statistics: SpeculationStatistics, draft_model: str, drafter: str = ""
    ) -> None:
        """A completion ended by its own rules. `draft_model` is empty if it had no drafter; `drafter` says what had
        become of it, by a state's name."""
        self._telemetry.instruments.count(statistics, model=self._model, draft_model=draft_model, asked=self._asked)
        ended = self._ended[finished.completion] = _Ended(finished, statistics, draft_model)
        self._telemetry.instruments.count_completion(
            finished.usage, model=self._model, mode=ended.mode, drafter=drafter
        )

    def _tell_of(self, ended: Sequence[_Ended]) -> None:
        statistics = [each.statistics for each in ended]
        usages = [each.finished.usage for each in ended]
        notable = next((each for each in ended if each.finished.mode_reason), ended[0])
        self._span.set_attributes(speculation_attributes(sum(statistics, SpeculationStatistics())))
        self._span.set_attributes(
            {
                names.MODE: notable.mode,
                names.MODE_REASON: notable.finished.mode_reason,
                names.DRAFT_MODEL: ",".join(sorted({each.draft_model for each in ended if each.draft_model})),
                names.GEN_AI_RESPONSE_MODEL: self._model,
                names.GEN_AI_RESPONSE_FINISH_REASONS: tuple(each.finished.reason.name.lower() for each in ended),
                names.GEN_AI_USAGE_INPUT_TOKENS: usages[0].num_prompt_tokens,
                names.GEN_AI_USAGE_OUTPUT_TOKENS: sum(usage.num_generated_tokens for usage in usages),
                names.NUM_CACHED_PROMPT_TOKENS: sum(usage.num_cached_prompt_tokens for usage in usages),
                names.COMPLETIONS_MODES: tuple(each.mode for each in ended),
                names.COMPLETIONS_NUM_OUTPUT_TOKENS: tuple(usage.num_generated_tokens for usage in usages),
                names.COMPLETIONS_NUM_ROUNDS: tuple(each.num_rounds for each in statistics),
                names.ROUNDS_MS: tuple(
                    1000.0 * moment for each in ended for moment in self._rounds[each.finished.completion]
                ),
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ended and self._span.is_recording():
            self._tell_of([self._ended[completion] for completion in sorted(self._ended)])
        if exception_type is GeneratorExit:  # the caller has left, between two events
            exception_type = asyncio.CancelledError
        error_type = exception_type.__name__ if exception_type is not None else None
        if error_type is not None:
            self._span.set_attribute(names.ERROR_TYPE, error_type)
            # Only our own errors' texts are written to be shown.
            self._span.set_status(Status(StatusCode.ERROR, str(error) if isinstance(error, OutriderError) else None))
        self._telemetry.instruments.record_request(
            time.monotonic() - self._started, model=self._model, error_type=error_type, context=self._context
        )
        self._span.end()
