"""What became of a request, as spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct, Value

from outrider.core.protocol.request_trace import (
    Attributes,
    MissingPart,
    RequestTrace,
    Scalar,
    SpanEvent,
    TraceSpan,
)
from outrider.v1 import common_pb2
from outrider.v1 import generation_pb2 as pb

_EXACT_MAX: Final = 2**53
"""A Struct's numbers are doubles: an integer beyond this becomes its digits."""


def encode_spans(spans: Iterable[TraceSpan]) -> common_pb2.GetSpansResponse:
    """A worker's part."""
    return common_pb2.GetSpansResponse(spans=map(_encode_span, spans))


def decode_spans(message: common_pb2.GetSpansResponse) -> list[TraceSpan]:
    """A worker's part. What an attribute cannot be is left out."""
    return [*map(_decode_span, message.spans)]


def encode_request_trace(trace: RequestTrace) -> pb.GetTraceResponse:
    """All parts."""
    return pb.GetTraceResponse(
        spans=map(_encode_span, trace.spans), missing=[pb.MissingPart(**each._asdict()) for each in trace.missing]
    )


def decode_request_trace(message: pb.GetTraceResponse) -> RequestTrace:
    """All parts."""
    return RequestTrace(
        [*map(_decode_span, message.spans)],
        [MissingPart(each.service, each.address, each.reason) for each in message.missing],
    )


def _encode_span(span: TraceSpan) -> common_pb2.TraceSpan:
    return common_pb2.TraceSpan(
        service=span.service,
        name=span.name,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=span.parent_id,
        start_ns=span.start_ns,
        end_ns=span.end_ns,
        attributes=_encode_attributes(span.attributes),
        events=[
            common_pb2.TraceEvent(name=each.name, time_ns=each.time_ns, attributes=_encode_attributes(each.attributes))
            for each in span.events
        ],
        address=span.address,
    )


def _decode_span(message: common_pb2.TraceSpan) -> TraceSpan:
    return TraceSpan(
        service=message.service,
        name=message.name,
        trace_id=message.trace_id,
        span_id=message.span_id,
        parent_id=message.parent_id,
        start_ns=message.start_ns,
        end_ns=message.end_ns,
        attributes=_decode_attributes(message.attributes),
        events=[SpanEvent(each.name, each.time_ns, _decode_attributes(each.attributes)) for each in message.events],
        address=message.address,
    )


def _encode_attributes(attributes: Attributes) -> Struct:
    struct = Struct()
    struct.update(
        {
            key: _exact(value) if isinstance(value, Scalar) else [*map(_exact, value)]
            for key, value in attributes.items()
        }
    )
    return struct


def _exact(value: Scalar) -> Scalar:
    return str(value) if isinstance(value, int) and abs(value) > _EXACT_MAX else value


def _decode_attributes(struct: Struct) -> Attributes:
    fields: Mapping[str, Value] = struct.fields
    found: dict[str, Scalar | Sequence[Scalar]] = {}
    for key, value in fields.items():
        if value.WhichOneof("kind") == "list_value":
            scalars = [_scalar(each) for each in value.list_value.values]
            found[key] = [each for each in scalars if each is not None]
        elif (scalar := _scalar(value)) is not None:
            found[key] = scalar
    return found


def _scalar(value: Any) -> Scalar | None:
    """None for null, and for what is nested."""
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number: float = value.number_value
            return int(number) if number.is_integer() else number
        case _:
            return None
