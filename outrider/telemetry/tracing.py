"""Traces that cross services: W3C context in and out, spans for work that is over, and how much detail to record."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from outrider.core.protocol.messages import TraceContext

_PROPAGATOR = TraceContextTextMapPropagator()


class TraceDetail(Enum):
    """How much of a traced request is recorded."""

    REQUEST = "request"
    """One span per request and service; rounds as arrays of numbers."""
    ROUND = "round"
    """A span for each round and each step besides: some hundreds per request."""


def inject(span: Span) -> TraceContext:
    """The context of `span`, to send to another service; empty strings if there is no trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return TraceContext(carrier.get("traceparent", ""), carrier.get("tracestate", ""))


def extract(received: TraceContext) -> Context:
    """The context that another service sent, as the parent of spans here. What is no valid context starts no trace."""
    return _PROPAGATOR.extract(received._asdict(), Context())


def within(span: Span) -> Context:
    """The context whose spans are children of `span`."""
    return trace.set_span_in_context(span, Context())


def record_span(
    tracer: Tracer,
    name: str,
    parent: Context,
    start_ns: int,
    end_ns: int,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> None:
    """Records work that is over. Times are those of `time.time_ns`.

    For steps measured on a device thread, which has no part in tracing: the event loop records them afterwards.
    """
    tracer.start_span(name, parent, attributes=attributes, start_time=start_ns).end(end_ns)
