"""What became of a request, as the command line puts it in order and shows it."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from outrider.cli.timeline import Timeline, timeline
from outrider.cli.trace import print_timeline, timeline_object
from outrider.core.protocol.request_trace import MissingPart, RequestTrace, SpanEvent, TraceSpan
from outrider.telemetry import names

START = 1_700_000_000_000_000_000
VERIFY, DRAFT = "outrider.v1.VerifyService", "outrider.v1.DraftService"


def ns(ms: float) -> int:
    return START + int(ms * 1e6)


def placed(at_ms: float, service: str, address: str, *before: str) -> SpanEvent:
    attributes = {
        names.REPLICA_SERVICE: service,
        names.REPLICA_ADDRESS: address,
        names.REPLICA_INSTEAD_OF: before,
    }
    return SpanEvent(names.EVENT_PLACED, ns(at_ms), attributes)


REQUEST = TraceSpan(
    "outrider-coordinator",
    "text_completion target",
    "ab" * 16,
    "cd" * 8,
    "",
    ns(0.0),
    ns(100.0),
    {
        names.GEN_AI_RESPONSE_ID: "r1",
        names.MODE: "GENERATION_MODE_SPECULATIVE",
        names.GEN_AI_USAGE_OUTPUT_TOKENS: 6,
        names.ROUNDS_MS: [30.0, 60.0],
        names.ROUNDS_NUM_DRAFT_TOKENS: [0, 4],
        names.ROUNDS_NUM_ACCEPTED: [0, 3],
    },
    [placed(1.0, VERIFY, "v:1"), placed(2.0, DRAFT, "d:1")],
)


def session(name: str, address: str, begin: float, end: float, **more: Any) -> TraceSpan:
    attributes = {names.SESSION_ID: "r1", names.SESSION_QUEUE_MS: 2.0, **more}
    return TraceSpan("w", name, "ab" * 16, "ef" * 8, "cd" * 8, ns(begin), ns(end), attributes, (), address)


VERIFIED = session(
    names.SPAN_VERIFY_SESSION,
    "v:1",
    3.0,
    95.0,
    **{
        names.SESSION_NUM_ROUNDS: 3,
        names.STEPS_START_MS: [2.5, 30.0],
        names.STEPS_DURATION_MS: [20.0, 25.0],
        names.STEPS_NUM_DRAFT_TOKENS: [0, 4],
        names.STEPS_NUM_ACCEPTED: [0, 3],
    },
)
DRAFTED = session(
    names.SPAN_DRAFT_SESSION,
    "d:1",
    4.0,
    96.0,
    **{names.STEPS_START_MS: [5.0], names.STEPS_DURATION_MS: [10.0], names.STEPS_NUM_NODES: [4]},
)


def kinds(found: Timeline) -> list[tuple[float, str, str]]:
    return [(entry.at_ms, entry.service, entry.kind) for entry in found.entries]


def printed(found: Timeline) -> list[str]:
    out = Console(file=io.StringIO(), width=40)
    print_timeline(found, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_all_services_are_in_one_order() -> None:
    found = timeline(RequestTrace([REQUEST, VERIFIED, DRAFTED]))
    assert kinds(found) == [
        (0.0, "coordinator", "arrived"),
        (1.0, "verify", "placed"),
        (2.0, "draft", "placed"),
        (3.0, "verify", "opened"),
        (4.0, "draft", "opened"),
        (5.5, "verify", "round"),
        (9.0, "draft", "window"),
        (33.0, "verify", "round"),
        (58.0, "verify", "more"),
        (95.0, "verify", "closed"),
        (96.0, "draft", "closed"),
        (100.0, "coordinator", "ended"),
    ]
    first, second = [entry.said for entry in found.entries if entry.kind == "round"]
    assert (first["wait_ms"], second["wait_ms"]) == (0.5, 7.5)
    assert (second["num_draft_tokens"], second["num_accepted_tokens"]) == (4, 3)


def test_it_reads_as_lines() -> None:
    lines = printed(timeline(RequestTrace([REQUEST, VERIFIED, DRAFTED])))
    assert lines[0] == f"request r1, trace {'ab' * 16}, text_completion target"
    (line,) = [each for each in lines if "round 1" in each]
    assert " ".join(line.split()) == "33.0 25.0 ███████ verify v:1 round 1: 3 of 4 accepted, waited 7.5 ms"
    assert line.index("█") == len("     33.0     25.0 ") + 33 * 24 // 100
    assert lines[-1].endswith("is over, mode: GENERATION_MODE_SPECULATIVE, num_tokens: 6")


def test_json_has_the_same() -> None:
    found = json.loads(json.dumps(timeline_object(timeline(RequestTrace([REQUEST, VERIFIED, DRAFTED])))))
    assert (found["request_id"], found["total_ms"], len(found["entries"])) == ("r1", 100.0, 12)
    assert found["attributes"][names.MODE] == "GENERATION_MODE_SPECULATIVE"
    assert found["entries"][7] == {
        "at_ms": 33.0,
        "took_ms": 25.0,
        "service": "verify",
        "address": "v:1",
        "session_id": "r1",
        "kind": "round",
        "number": 1,
        "wait_ms": 7.5,
        "num_draft_tokens": 4,
        "num_accepted_tokens": 3,
    }


def test_a_move_and_a_part_that_is_missing_are_told_and_the_coordinators_rounds_stand_in() -> None:
    moved = REQUEST._replace(events=[*REQUEST.events, placed(50.0, VERIFY, "v:2", "v:1")])
    missing = MissingPart(VERIFY, "v:1", "it is not in the pool any more")
    found = timeline(RequestTrace([moved, DRAFTED], [missing]))
    assert [(at, kind) for at, _, kind in kinds(found) if kind in ("placed", "told")] == [
        (1.0, "placed"),
        (2.0, "placed"),
        (30.0, "told"),
        (50.0, "placed"),
        (60.0, "told"),
    ]
    lines = printed(found)
    assert any("moves here, for v:1 refused or lost it" in line for line in lines)
    assert lines[-1] == f"v:1 ({VERIFY}) did not tell its part: it is not in the pool any more"


def test_a_clock_that_is_wrong_is_set_by_the_placement() -> None:
    for off_ms in (-5000.0, 5000.0):
        off_ns = int(off_ms * 1e6)
        wrong = VERIFIED._replace(start_ns=VERIFIED.start_ns + off_ns, end_ns=VERIFIED.end_ns + off_ns)
        opened, first, *_ = [
            entry for entry in timeline(RequestTrace([REQUEST, wrong])).entries if entry.session_id == "r1"
        ]
        assert (opened.at_ms, first.at_ms) == (1.0, 3.5)


def test_what_a_worker_says_has_no_power_over_the_terminal() -> None:
    broken: dict[str, Any] = {
        names.ERROR_TYPE: "\x1b[2Jgone\nnext",
        names.STEPS_START_MS: ["x", 1.0],
        names.STEPS_DURATION_MS: 7,
        names.SESSION_QUEUE_MS: "\x1b[31m",
        names.SESSION_NUM_ROUNDS: [1],
    }
    rogue = session(names.SPAN_VERIFY_SESSION, "v:\x1b]0;1\x07", 3.0, 95.0, **broken)
    lines = printed(timeline(RequestTrace([REQUEST, rogue], [MissingPart(VERIFY, "v:1", "no\x1b[2J\n")])))
    assert not any("\x1b" in line or "\x07" in line for line in lines)
    assert any("error: ␛[2Jgone␊next" in line for line in lines)
