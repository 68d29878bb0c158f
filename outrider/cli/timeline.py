"""Time line: what happened to one request at all services, in one order. Pure: spans in, entries out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from outrider.core.protocol.request_trace import MissingPart, RequestTrace, Scalar, TraceSpan
from outrider.telemetry import names

COORDINATOR: Final = "coordinator"
_WORKERS: Final[Mapping[str, str]] = {names.SPAN_VERIFY_SESSION: "verify", names.SPAN_DRAFT_SESSION: "draft"}
"""What workers are called here, by their sessions' spans."""

_SERVICES: Final[Mapping[str, str]] = {"outrider.v1.VerifyService": "verify", "outrider.v1.DraftService": "draft"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened, or one stretch of work."""

    at_ms: float
    """From the request's arrival to its begin, by the coordinator's clock."""
    took_ms: float | None
    """None for a moment."""
    service: str
    address: str
    kind: str
    """arrived, placed, opened, round, window, told, more, ended."""
    session_id: str = ""
    said: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Numbers and words that belong to the kind."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A request's time line."""

    request: TraceSpan
    """The coordinator's span, which says what was asked and what came of it."""
    entries: Sequence[Entry]
    missing: Sequence[MissingPart]

    @property
    def total_ms(self) -> float:
        """From arrival to end."""
        return _ms(self.request.end_ns - self.request.start_ns)


def timeline(trace: RequestTrace) -> Timeline:
    """Puts everything in order.

    A worker's times are by its own clock. Where by that a session began before it was placed or after the request's
    end, all of its times are moved, so that it begins when it was placed.
    """
    request, *sessions = trace.spans
    placed = [*_placed(request)]
    entries = [
        Entry(0.0, None, COORDINATOR, "", "arrived"),
        *placed,
        *(each for span in sessions for each in _session(span, _begin_ms(span, request, placed))),
    ]
    if any(_SERVICES.get(each.service) == "verify" for each in trace.missing):
        entries += _told(request)
    end = Entry(_ms(request.end_ns - request.start_ns), None, COORDINATOR, "", "ended", said=_end(request))
    return Timeline(request, [*sorted(entries, key=lambda entry: entry.at_ms), end], trace.missing)


def _placed(request: TraceSpan) -> Iterator[Entry]:
    for event in request.events:
        if event.name == names.EVENT_PLACED:
            said = event.attributes
            service = str(said.get(names.REPLICA_SERVICE, ""))
            yield Entry(
                _ms(event.time_ns - request.start_ns),
                None,
                _SERVICES.get(service, service),
                str(said.get(names.REPLICA_ADDRESS, "")),
                "placed",
                said={"instead_of": [*map(str, _values(said.get(names.REPLICA_INSTEAD_OF)))]},
            )


def _begin_ms(session: TraceSpan, request: TraceSpan, placed: Sequence[Entry]) -> float:
    """When the session began, by the coordinator's clock as nearly as can be told."""
    begin = _ms(session.start_ns - request.start_ns)
    there = [each.at_ms for each in placed if each.address == session.address]
    if there and (begin < min(there) or begin > _ms(request.end_ns - request.start_ns)):
        return min(there)
    return begin


def _session(span: TraceSpan, begin_ms: float) -> Iterator[Entry]:
    said = span.attributes
    service = _WORKERS.get(span.name, span.name)
    session_id = str(said.get(names.SESSION_ID, ""))

    def entry(at_ms: float, took_ms: float | None, kind: str, **more: Any) -> Entry:
        return Entry(begin_ms + at_ms, took_ms, service, span.address, kind, session_id, more)

    queue_ms = _number(said.get(names.SESSION_QUEUE_MS))
    yield entry(0.0, None, "opened", queue_ms=queue_ms)
    starts, durations = _values(said.get(names.STEPS_START_MS)), _values(said.get(names.STEPS_DURATION_MS))
    if span.name == names.SPAN_VERIFY_SESSION:
        free_ms = queue_ms
        steps = zip(
            starts,
            durations,
            _values(said.get(names.STEPS_NUM_DRAFT_TOKENS)),
            _values(said.get(names.STEPS_NUM_ACCEPTED)),
            strict=False,
        )
        for number, (start, duration, num_draft_tokens, num_accepted) in enumerate(steps):
            start_ms, step_ms = _number(start), _number(duration)
            yield entry(
                start_ms,
                step_ms,
                "round",
                number=number,
                wait_ms=max(start_ms - free_ms, 0.0),
                num_draft_tokens=num_draft_tokens,
                num_accepted_tokens=num_accepted,
            )
            free_ms = start_ms + step_ms
        if (num_more := int(_number(said.get(names.SESSION_NUM_ROUNDS))) - len(starts)) > 0:
            yield entry(free_ms, None, "more", num_rounds=num_more)
    else:
        for start, duration, num_nodes in zip(
            starts, durations, _values(said.get(names.STEPS_NUM_NODES)), strict=False
        ):
            yield entry(_number(start), _number(duration), "window", num_nodes=num_nodes)
    error = said.get(names.ERROR_TYPE)
    yield entry(_ms(span.end_ns - span.start_ns), None, "closed", **({"error": str(error)} if error else {}))


def _told(request: TraceSpan) -> Iterator[Entry]:
    """The rounds as the coordinator saw them."""
    said = request.attributes
    rounds = zip(
        _values(said.get(names.ROUNDS_MS)),
        _values(said.get(names.ROUNDS_NUM_DRAFT_TOKENS)),
        _values(said.get(names.ROUNDS_NUM_ACCEPTED)),
        strict=False,
    )
    for at_ms, num_draft_tokens, num_accepted in rounds:
        counts = {"num_draft_tokens": num_draft_tokens, "num_accepted_tokens": num_accepted}
        yield Entry(_number(at_ms), None, COORDINATOR, "", "told", said=counts)


def _end(request: TraceSpan) -> dict[str, Any]:
    said = request.attributes
    found = {
        "error": said.get(names.ERROR_TYPE),
        "mode": said.get(names.MODE),
        "mode_reason": said.get(names.MODE_REASON),
        "finish_reasons": said.get(names.GEN_AI_RESPONSE_FINISH_REASONS),
        "num_tokens": said.get(names.GEN_AI_USAGE_OUTPUT_TOKENS),
    }
    return {name: value for name, value in found.items() if value}


def _values(value: Scalar | Sequence[Scalar] | None) -> Sequence[Scalar]:
    """Of a list; what is none has none. It may come from a worker."""
    return [] if value is None or isinstance(value, Scalar) else value


def _number(value: Scalar | Sequence[Scalar] | None) -> float:
    """0 for what is no number. It may come from a worker."""
    return float(value) if isinstance(value, int | float) else 0.0


def _ms(nanoseconds: int) -> float:
    return nanoseconds / 1e6
