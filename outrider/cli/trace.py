"""What became of one request, as its services remember it: a time line in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from outrider.cli.timeline import Entry, Timeline, timeline
from outrider.client import NO_CREDENTIALS, Credentials, GenerationClient
from outrider.core.protocol.printable import printable
from outrider.telemetry import names

_BAR_CHARACTERS: Final = 24
"""Width of the picture of when a stretch of work was, from the request's arrival to its end."""

_STYLES: Final[Mapping[str, str]] = {"round": "green", "window": "yellow", "placed": "bold", "ended": "bold"}

_MS_DIGITS: Final = 3
"""Decimals of a duration in JSON: microseconds."""


async def trace(name: str, address: str, credentials: Credentials = NO_CREDENTIALS) -> Timeline:
    """Asks the coordinators at `address` for a request by its id, by that of an OpenAI answer, or by its trace's.

    Raises InvalidRequestError if none remembers it, and other OutriderErrors.
    """
    async with GenerationClient(address, credentials) as client:
        return timeline(await client.trace(_bare(name)))


def print_timeline(found: Timeline, out: Console) -> None:
    """A line for each entry: when, how long, where, what."""
    said = found.request.attributes
    title = f"request {said.get(names.GEN_AI_RESPONSE_ID)}, trace {found.request.trace_id}, {found.request.name}"
    _print(title, out, "bold")
    _print(f"{'ms':>9} {'took':>8}", out, "dim")
    for entry in found.entries:
        took = "" if entry.took_ms is None else f"{entry.took_ms:.1f}"
        where = f"{entry.service} {entry.address}".strip()
        bar = _bar(entry, found.total_ms)
        _print(f"{entry.at_ms:9.1f} {took:>8} {bar} {where:<26} {_words(entry)}", out, _STYLES.get(entry.kind, ""))
    for part in found.missing:
        _print(f"{part.address} ({part.service}) did not tell its part: {part.reason}", out, "yellow")


def timeline_object(found: Timeline) -> dict[str, Any]:
    """The object that `outrider trace --json` prints."""
    said = found.request.attributes
    return {
        "request_id": said.get(names.GEN_AI_RESPONSE_ID),
        "trace_id": found.request.trace_id,
        "start_ns": found.request.start_ns,
        "total_ms": round(found.total_ms, _MS_DIGITS),
        "attributes": said,
        "entries": [_entry_object(entry) for entry in found.entries],
        "missing": [part._asdict() for part in found.missing],
    }


def _entry_object(entry: Entry) -> dict[str, Any]:
    rounded = {key: round(each, _MS_DIGITS) if isinstance(each, float) else each for key, each in entry.said.items()}
    return {
        "at_ms": round(entry.at_ms, _MS_DIGITS),
        "took_ms": None if entry.took_ms is None else round(entry.took_ms, _MS_DIGITS),
        "service": entry.service,
        "address": entry.address,
        "session_id": entry.session_id,
        "kind": entry.kind,
        **rounded,
    }


def _words(entry: Entry) -> str:
    said = entry.said
    match entry.kind:
        case "arrived":
            return "the request arrives"
        case "placed":
            before = ", ".join(said["instead_of"])
            return f"moves here, for {before} refused or lost it" if before else "is chosen"
        case "opened":
            return f"the session opens, and has its slot after {said['queue_ms']:.1f} ms"
        case "round":
            accepted = f"{said['num_accepted_tokens']} of {said['num_draft_tokens']} accepted"
            return f"round {said['number']}: {accepted}, waited {said['wait_ms']:.1f} ms"
        case "window":
            return f"drafts {said['num_nodes']}"
        case "told":
            return f"tokens leave: {said['num_accepted_tokens']} of {said['num_draft_tokens']} accepted"
        case "more":
            return f"and {said['num_rounds']} more rounds"
        case _:
            return "is over" + "".join(f", {name}: {value}" for name, value in said.items())


def _bar(entry: Entry, total_ms: float) -> str:
    """Where the entry lies in the request's time."""

    def place(at_ms: float) -> int:
        share = at_ms / total_ms if total_ms > 0.0 else 0.0
        return min(max(int(share * _BAR_CHARACTERS), 0), _BAR_CHARACTERS - 1)

    begin = place(entry.at_ms)
    if entry.took_ms is None:
        return f"{'·':>{begin + 1}}".ljust(_BAR_CHARACTERS)
    num_blocks = place(entry.at_ms + entry.took_ms) - begin + 1
    return (" " * begin + "█" * num_blocks).ljust(_BAR_CHARACTERS)


def _bare(name: str) -> str:
    """The request's id in that of an OpenAI answer, such as `cmpl-…` or `resp_…`."""
    return name.strip().rpartition("-")[2].rpartition("_")[2]


def _print(line: str, out: Console, style: str) -> None:
    """Names and reasons come from services."""
    out.print(Text(printable(line), style), soft_wrap=True)
