"""OpenTelemetry spans of one session at a worker: the session, and its steps if they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from opentelemetry.util.types import AttributeValue

from outrider.core.protocol.messages import TraceContext
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.telemetry.tracing import extract, record_span, within


class SessionTrace:
    """Use it as a context manager around one stream."""

    def __init__(self, telemetry: Telemetry, span_name: str, session_id: str, trace: TraceContext) -> None:
        self._telemetry = telemetry
        self._span = telemetry.tracer.start_span(span_name, extract(trace), attributes={names.SESSION_ID: session_id})
        self.records_steps = telemetry.records_rounds(self._span)
        """Whether to call `step`."""

    def step(self, span_name: str, started_ns: int, ended_ns: int, attributes: Mapping[str, AttributeValue]) -> None:
        """Records work of the device thread that is over."""
        record_span(self._telemetry.tracer, span_name, within(self._span), started_ns, ended_ns, attributes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exception_type is not None:
            self._span.set_attribute(names.ERROR_TYPE, exception_type.__name__)
        self._span.end()
