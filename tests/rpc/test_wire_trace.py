"""A request's trace on the wire: what a span may say survives, and what it may not is left out."""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.protocol.request_trace import MissingPart, RequestTrace, SpanEvent, TraceSpan
from outrider.rpc import wire
from outrider.v1 import common_pb2

NS = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SCALAR = TEXT | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
ATTRIBUTES = st.dictionaries(TEXT, SCALAR | st.lists(SCALAR, max_size=4), max_size=4)
SPANS = st.builds(
    TraceSpan,
    *(TEXT,) * 5,
    start_ns=NS,
    end_ns=NS,
    attributes=ATTRIBUTES,
    events=st.lists(st.builds(SpanEvent, TEXT, NS, ATTRIBUTES), max_size=2),
    address=TEXT,
)


@given(spans=st.lists(SPANS, max_size=3), missing=st.lists(st.builds(MissingPart, TEXT, TEXT, TEXT), max_size=2))
def test_a_trace_survives(spans: list[TraceSpan], missing: list[MissingPart]) -> None:
    trace = RequestTrace(spans, missing)
    encoded = wire.encode_request_trace(trace)
    assert wire.decode_request_trace(type(encoded).FromString(encoded.SerializeToString())) == trace
    part = wire.encode_spans(spans)
    assert wire.decode_spans(type(part).FromString(part.SerializeToString())) == spans


def test_an_integer_that_no_double_holds_becomes_its_digits() -> None:
    span = TraceSpan("s", "n", "", "", "", 1, 2, {"small": 2**53, "large": 2**53 + 1, "both": (1, -(2**60))})
    (found,) = wire.decode_spans(wire.encode_spans([span]))
    assert found.attributes == {"small": 2**53, "large": str(2**53 + 1), "both": [1, str(-(2**60))]}


def test_what_is_nested_or_nothing_is_left_out() -> None:
    nested = Struct()
    nested.update({"a": {"b": 1}, "c": None, "d": [[1], 2, None], "e": "f"})
    (found,) = wire.decode_spans(common_pb2.GetSpansResponse(spans=[common_pb2.TraceSpan(attributes=nested)]))
    assert found.attributes == {"d": [2], "e": "f"}
