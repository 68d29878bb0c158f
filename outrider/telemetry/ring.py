"""The ring: the latest requests as this process has seen them, for whoever asks without a collector."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple, cast

from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import format_span_id, format_trace_id

from outrider.core.protocol.request_trace import Attributes, Scalar, SpanEvent, TraceSpan
from outrider.telemetry import names

SPANS_MAX = 1024
"""Most spans that are kept, one for a request or session: some 5 MB of ordinary ones, ten times that at worst."""

VALUES_MAX = 1024
"""Most values of one attribute that are kept: the rounds of an answer of some thousand tokens."""

CONTENT_KEYS: Final = frozenset({names.GEN_AI_REQUEST_STOP_SEQUENCES})
"""Attributes that are a user's words. A collector gets them; the ring does not."""


class _Kept(NamedTuple):
    request_id: str
    span: TraceSpan


class SpanRing(SpanProcessor):
    """Keeps each request's span at a coordinator, and each session's at a worker, when it has ended.

    Spans of single rounds and steps are left out: the others have the same numbers, as lists. The oldest one gives way.
    """

    def __init__(self, num_spans_max: int = SPANS_MAX) -> None:
        self._kept: deque[_Kept] = deque(maxlen=num_spans_max)

    def on_end(self, span: ReadableSpan) -> None:
        """See SpanProcessor."""
        if request_id := _request_id(span.attributes or {}):
            self._kept.append(_Kept(request_id, _kept_of(span)))

    def spans(self, name: str) -> list[TraceSpan]:
        """What is kept of the request with that id, or of those in the trace with that id; the latest first. Any
        thread."""
        return [span for request_id, span in reversed(self._kept.copy()) if name in (request_id, span.trace_id)]


def _request_id(attributes: Mapping[str, object]) -> str:
    """Of the request that a span is about; empty if it is about less than a session."""
    named = attributes.get(names.GEN_AI_RESPONSE_ID) or attributes.get(names.SESSION_ID, "")
    return str(named).partition(".")[0]


def _kept_of(span: ReadableSpan) -> TraceSpan:
    return TraceSpan(
        service=str(span.resource.attributes.get(SERVICE_NAME, "")),
        name=span.name,
        trace_id=format_trace_id(span.context.trace_id) if span.context is not None else "",
        span_id=format_span_id(span.context.span_id) if span.context is not None else "",
        parent_id=format_span_id(span.parent.span_id) if span.parent is not None else "",
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        attributes=_bounded(span.attributes or {}),
        events=[SpanEvent(each.name, each.timestamp, _bounded(each.attributes or {})) for each in span.events],
    )


def _bounded(attributes: Mapping[str, object]) -> Attributes:
    return {
        key: value[:VALUES_MAX] if isinstance(value, tuple) else cast("Scalar", value)
        for key, value in attributes.items()
        if key not in CONTENT_KEYS
    }
