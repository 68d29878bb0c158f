"""A result as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.compare.report import OURS, REFERENCE, best_modes

WIDTH = 118
"""Columns where the output is not a terminal's: as many as the widest table needs."""


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Three tables for each temperature: speed, what speculation did, and where the time went."""
    console = console or default_console()
    for at in result["results"]:
        shown = [(title, at["modes"][name]) for name, title in best_modes(result, at)]
        settings = result["settings"]
        drawn = "greedy" if at["temperature"] == 0 else f"temperature {at['temperature']:g}"
        covered = " ".join(f"{share:.2f}" for share in at["coverage"])
        heading = (
            f"{settings['target']} and {settings['draft']}, {settings['dtype']}, "
            f"{drawn}: {settings['num_prompts']} prompts, {settings['max_tokens']} tokens each\n"
            f"the target's token is among the draft's first 1, 2, ... guesses: {covered}"
        )
        console.print(_speed(heading, shown))
        console.print(_speculation(shown))
        console.print(_time(shown))
    machine = result["machine"]
    console.print(
        f"{machine['cores']} cores of {machine['processor']}; a message to a worker and back: "
        f"{machine['round_trip_ms']:.2f} ms.\n{_LEGEND}",
        style="dim",
    )


def show_plane(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Speed-ups over the target alone, point by point, and beside them what real services made of some points."""
    console = console or default_console()
    table = new_table(
        "On the virtual clock: times faster than the target alone", "c", "delay", *result["schemes"], "bound"
    )
    for point in result["points"]:
        table.add_row(
            f"alpha {point['alpha']:g}",
            f"{point['draft_step']:g}",
            f"{point['delay']:g}",
            *(number(point["speed_up"][scheme]) for scheme in result["schemes"]),
            number(1.0 / point["theory"]["chain_bound"]),
        )
    console.print(table)
    if not result.get("confirmed"):
        return
    table = new_table("On real services with forced times (and on the virtual clock)", "c", "delay", *result["schemes"])
    for point in result["confirmed"]:
        both = [(point["on_services"][scheme], point["on_virtual_clock"][scheme]) for scheme in result["schemes"]]
        table.add_row(
            f"alpha {point['alpha']:g}",
            f"{point['draft_step']:g}",
            f"{point['delay']:g}",
            *(f"{real:.2f} ({virtual:.2f})" for real, virtual in both),
        )
    console.print(table)


_LEGEND = (
    f"x {REFERENCE}: times faster than the target alone on the same engine. {OURS} x: how much faster {OURS} is than "
    "this one. Both: ratio of all time, with its 95 % bootstrap interval over prompts. roofline: share reached of "
    "max(c, 1 - alpha) for a chain, of 1 - alpha' for a tree. same: answers that are token for token the target's. "
    "right: tested drafts that were the target's choice. hits: rejections whose place the tree already held with the "
    "target's token. overlap: share of time in which both devices compute, by the workers' logs. A round's time is "
    "verify + own + idle + in/out; drafting runs beside it."
)

Rows = Sequence[tuple[str, Mapping[str, Any]]]


def _speed(heading: str, shown: Rows) -> Table:
    table = new_table(heading, "ms/token", "decoding", "first", f"x {REFERENCE}", f"{OURS} x", "roofline", "same")
    for title, each in shown:
        table.add_row(
            title,
            number(each["ms_per_token"]),
            number(each["decode_ms_per_token"]),
            number(each["first_token_ms"], 1),
            _ratio(each["speed_up"]),
            _ratio(each.get("advantage_of_ours")),
            share((each["roofline"] or {}).get("share_reached")),
            _identity(each),
        )
    return table


def _speculation(shown: Rows) -> Table:
    table = new_table(
        "What speculation did",
        *("a round", "depth 1, 2, ..", "right", "drafted", "scored", "accepted"),
        *("stale", "wasted", "hits"),
    )
    for title, each in shown:
        if "num_drafted_nodes" not in each:
            table.add_row(title, number(each["acceptance_length"]))
            continue
        hits = f"{each['num_recovered_token_hits'] / each['num_rejections']:.0%}" if each["num_rejections"] else ""
        table.add_row(
            title,
            number(each["acceptance_length"]),
            " ".join(f"{share:.2f}".lstrip("0") for share in each["accepted_at_depth"][:4]),
            number(each["acceptance"]),
            *(
                str(each[name])
                for name in (
                    *("num_drafted_nodes", "num_draft_tokens", "num_accepted_tokens"),
                    *("num_stale_nodes", "num_wasted_nodes"),
                )
            ),
            hits,
        )
    return table


def _time(shown: Rows) -> Table:
    table = new_table(
        "Where a round's time goes, in ms",
        *("verify", "own", "idle", "in/out", "draft", "own", "verify step", "draft step", "own/step", "overlap"),
    )
    for title, each in shown:
        if "round_ms" not in each:
            continue
        parts = each["round_ms"]
        names = ("verify", "verifier_outside", "verifier_idle", "edges", "drafting", "drafter_outside")
        table.add_row(
            title,
            *(number(parts[name]) for name in names),
            number(each["verify_step_ms"]),
            number(each["draft_step_ms"]),
            number(each["draft_outside_ms_per_step"]),
            share(each["overlap"]),
        )
    return table


def new_table(title: str, *headings: str) -> Table:
    """A table whose first column names what the others are about."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def default_console() -> Console:
    """Standard output, wide enough for every table where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def number(value: float | None, digits: int = 2) -> str:
    """A number; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share in percent; nothing for None."""
    return "" if value is None else f"{value:.0%}"


def _ratio(comparison: Mapping[str, Any] | None) -> str:
    if not comparison:
        return ""
    low, high = comparison["ratio_of_sums_95"]
    return f"{comparison['ratio_of_sums']:.2f} ({low:.2f}-{high:.2f})"


def _identity(summary: Mapping[str, Any]) -> str:
    same = summary["identity"]
    return "" if same is None else f"{same['num_identical']}/{summary['num_answers']}"
