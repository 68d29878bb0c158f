"""What telemetry sees of one request: the root span, its rounds, and the metrics at its end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

from coordinator.generation import EmittedTokens, Generation
from coordinator.request import GenerationRequest
from outrider.core.errors import OutriderError
from outrider.core.messages import NOT_TRACED, ModelInfo, TraceContext
from outrider.telemetry import names
from outrider.telemetry.attributes import request_attributes, speculation_attributes
from outrider.telemetry.setup import Telemetry
from outrider.telemetry.tracing import extract, inject, record_span, within


class Observation:
    """Use it as a context manager around one request."""

    def __init__(
        self,
        telemetry: Telemetry,
        request_id: str,
        request: GenerationRequest,
        target: ModelInfo,
        draft: ModelInfo | None,
        caller: TraceContext = NOT_TRACED,
    ) -> None:
        """The span continues the `caller`'s trace, if there is one. `draft` is the drafter's model, if any."""
        self._telemetry = telemetry
        self._model = target.name
        self._span = telemetry.tracer.start_span(
            names.request_span(target.name),
            extract(caller),
            kind=SpanKind.SERVER,
            attributes=request_attributes(
                target.name, request.sampling, request.max_length - len(request.prompt_token_ids), request.stop
            ),
        )
        self._span.set_attribute(names.GEN_AI_RESPONSE_ID, request_id)
        if draft is not None:
            self._span.set_attribute(names.DRAFT_MODEL, draft.name)
        self._records_rounds = telemetry.records_rounds(self._span)
        self._started = time.monotonic()
        self._last_round_ns = time.time_ns()
        self._num_rounds = 0

    @property
    def trace(self) -> TraceContext:
        """The context for the workers' spans."""
        return inject(self._span)

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, or empty if the request is not traced."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else ""

    def on_round(self, emitted: EmittedTokens) -> None:
        """A round's tokens are on their way to the client."""
        if not self._records_rounds:
            return
        now = time.time_ns()
        emit = emitted.emit
        attributes = {
            names.ROUND_INDEX: self._num_rounds,
            names.ROUND_POSITION: emit.position,
            names.ROUND_NUM_DRAFT_TOKENS: emit.num_draft_tokens,
            names.ROUND_NUM_ACCEPTED: emit.num_accepted,
            names.ROUND_ROLLED_BACK: emit.rolled_back,
        }
        record_span(self._telemetry.tracer, names.SPAN_ROUND, within(self._span), self._last_round_ns, now, attributes)
        self._last_round_ns = now
        self._num_rounds += 1

    def on_finish(self, generation: Generation, mode: str, reason: str) -> None:
        """The generation ended by its own rules."""
        session = generation.session
        assert session.finish_reason is not None
        instruments = self._telemetry.instruments
        instruments.count(session.statistics)
        instruments.record_first_token(generation.first_token_ms / 1000.0, model=self._model)
        if self._span.is_recording():
            self._span.set_attributes(speculation_attributes(session.statistics))
            self._span.set_attributes(
                {
                    names.MODE: mode,
                    names.MODE_REASON: reason,
                    names.GEN_AI_RESPONSE_MODEL: self._model,
                    names.GEN_AI_RESPONSE_FINISH_REASONS: (session.finish_reason.name.lower(),),
                    names.GEN_AI_USAGE_INPUT_TOKENS: session.line.num_prompt_tokens,
                    names.GEN_AI_USAGE_OUTPUT_TOKENS: generation.num_emitted,
                }
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        error_type = exception_type.__name__ if exception_type is not None else None
        if error_type is not None:
            self._span.set_attribute(names.ERROR_TYPE, error_type)
            # Only our own errors' texts are written to be shown.
            self._span.set_status(Status(StatusCode.ERROR, str(error) if isinstance(error, OutriderError) else None))
        self._telemetry.instruments.record_request(
            time.monotonic() - self._started, model=self._model, error_type=error_type
        )
        self._span.end()
