"""A result under load as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.compare.report import OURS, REFERENCE
from bench.compare.tables import default_console, new_table, number, share


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """For each temperature and kind of load three tables: speed, when tokens came, and what the verifier did; and a
    fourth of what long prompts did to others, if there were any."""
    console = console or default_console()
    settings = result["settings"]
    for temperature in dict.fromkeys(at["temperature"] for at in result["results"]):
        for loop in ("closed", "open"):
            shown = [at for at in result["results"] if (at["temperature"], at["loop"]) == (temperature, loop)]
            if shown:
                console.print(_speed(heading(settings, shown[0]), shown))
                console.print(_times(shown))
                console.print(_steps(shown))
                if any(at.get("long_prompt") for at in shown):
                    console.print(_stalls(shown))
    console.print(_legend(result), style="dim")


def heading(settings: Mapping[str, Any], at: Mapping[str, Any]) -> str:
    """What was asked, in a line."""
    drawn = "greedy" if at["temperature"] == 0 else f"temperature {at['temperature']:g}"
    prompts, outputs = (_choice(settings[name]) for name in ("prompt_lengths", "output_lengths"))
    return (
        f"{settings['target']} and {settings['draft']}, {settings['dtype']}, {drawn}: prompts of {prompts} tokens, "
        f"answers of {outputs}, {settings['num_passes']} passes"
    )


def ratio(comparison: Mapping[str, Any] | None) -> str:
    """A ratio and its interval."""
    if not comparison:
        return ""
    low, high = comparison["ratio_95"]
    return f"{comparison['ratio']:.2f} ({low:.2f}-{high:.2f})"


def _choice(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths[:-1])) + (" or " if lengths[1:] else "") + str(lengths[-1])


def _speed(title: str, results: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table(title, "tokens/s", f"x {REFERENCE}", f"{OURS} x", "good", "refused", "same")
    for at, name, each in _rows(table, results):
        table.add_row(
            _label(at, name),
            number(each["tokens_per_second"], 1),
            ratio(each["speed_up"]),
            ratio(each.get("advantage_of_ours")),
            share(each["goodput"]),
            str(each["num_refused"] or ""),
            f"{each['num_identical']}/{each['num_answers']}",
        )
    return table


def _times(results: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table(
        "When tokens came, in ms: the first one, those after it, and the longest that nothing came",
        *("first p50", "p90", "p99", "between p50", "p90", "p99", "gap p50", "p90", "p99"),
    )
    for at, name, each in _rows(table, results):
        table.add_row(
            _label(at, name),
            *_percentiles(each["first_token_ms"], 0),
            *_percentiles(each["inter_token_ms"], 1),
            *_percentiles(each["max_gap_ms"], 0),
        )
    return table


def _steps(results: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table(
        "What the verifier did",
        *("a round", "sessions", "tokens", "padding", "step ms", "busy", "room", "most", "queue", "cached"),
    )
    for at, name, each in _rows(table, results):
        table.add_row(
            _label(at, name),
            number(each["acceptance_length"]),
            number(each.get("sessions_per_step"), 1),
            number(each.get("tokens_per_step"), 1),
            number(each.get("padding_per_step"), 1),
            number(each.get("step_ms")),
            share(each.get("busy")),
            share(each.get("kv_use")),
            share(each.get("kv_use_max")),
            str(each.get("num_queued_max") or ""),
            str(each["num_cached_prompt_tokens"] or ""),
        )
    return table


def _stalls(results: Sequence[Mapping[str, Any]]) -> Table:
    lengths = {at["long_prompt"] for at in results if at.get("long_prompt")}
    table = new_table(
        f"What prompts of {max(lengths)} tokens, one after another, did to the others: times between tokens in ms",
        *("p50", "p99", "p99 without", "x without", "long ones read", "their first token p50"),
    )
    quiet = {at["load"]: at["modes"] for at in results if not at.get("long_prompt")}
    for at, name, each in _rows(table, [at for at in results if at.get("long_prompt")]):
        before, now = quiet[at["load"]][name]["inter_token_ms"] or {}, each["inter_token_ms"] or {}
        table.add_row(
            _label(at, name),
            *(number(value, 1) for value in (now.get("p50"), now.get("p99"), before.get("p99"))),
            _stall(each["stall"]),
            str(each["num_long_answers"]),
            number((each["long_first_token_ms"] or {}).get("p50"), 0),
        )
    return table


def _stall(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    low, high = found["ratio_range"]
    return f"{found['ratio']:.2f} ({low:.2f}-{high:.2f})"


def _rows(
    table: Table, results: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """Every point, mode and summary, with a section of `table` for each point."""
    for at in results:
        table.add_section()
        for name, each in at["modes"].items():
            yield at, name, each


def _label(at: Mapping[str, Any], name: str) -> str:
    long = " + long" if at.get("long_prompt") else ""
    return f"{at['load']:g} {'clients' if at['loop'] == 'closed' else 'requests/s'}{long} {name}"


def _percentiles(found: Mapping[str, float] | None, digits: int) -> list[str]:
    return ["", "", ""] if found is None else [number(value, digits) for value in found.values()]


def _legend(result: Mapping[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    objective = settings["objective"]
    return (
        f"{machine['cores']} cores of {machine['processor']}; a message to a worker and back: "
        f"{machine['round_trip_ms']:.2f} ms.\n"
        f"x {REFERENCE}: throughput by that of the target alone under the same load. {OURS} x: throughput of {OURS} by "
        "that of this one. Both with 95 % bootstrap intervals over passes and requests; where requests come by "
        "themselves, of the times of answers instead. good: answers with at most "
        f"{objective['first_token_ms']:g} ms to the first token and a mean of {objective['inter_token_ms']:g} ms "
        "between tokens. same: answers that are token for token the target's. between: tokens of one round share the "
        "time since the round before. a round: tokens that it brings. sessions, tokens, padding: in a step that gave "
        "verdicts. busy: share of time in such steps. room: share of the room for keys and values that sessions hold. "
        "cached: tokens of prompts that had been read for others."
        + (" x without: over all passes, and the least and largest of one." if settings.get("long_prompt") else "")
    )
