"""A request's trace: what each service did for it, as spans. Neither prompt nor text is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

Scalar = str | bool | int | float
Attributes = Mapping[str, Scalar | Sequence[Scalar]]
"""What a span says, by the names of `outrider/telemetry/names.py`."""


class SpanEvent(NamedTuple):
    """What happened at one moment of a span."""

    name: str
    time_ns: int
    """Unix time in nanoseconds, by the service's clock."""
    attributes: Attributes


class TraceSpan(NamedTuple):
    """Work for one request at one service, which is over."""

    service: str
    """What the service calls itself in traces."""
    name: str
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str
    """Of the span that it is a part of; empty if there is none."""
    start_ns: int
    """Unix time in nanoseconds, by the service's clock."""
    end_ns: int
    attributes: Attributes
    events: Sequence[SpanEvent] = ()
    address: str = ""
    """Of the worker, as the coordinator knows it; empty at whoever did the work."""


class MissingPart(NamedTuple):
    """A worker that had a part in a request and did not tell it."""

    service: str
    """Full name of what it serves."""
    address: str
    reason: str


class RequestTrace(NamedTuple):
    """What became of one request."""

    spans: Sequence[TraceSpan]
    """The coordinator's part first."""
    missing: Sequence[MissingPart] = ()
