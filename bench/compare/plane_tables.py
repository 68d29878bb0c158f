"""The plane of speculation as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from bench.columns import default_console, new_table


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
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
            *(f"{point['speed_up'][scheme]:.2f}" for scheme in result["schemes"]),
            f"{1.0 / point['theory']['chain_bound']:.2f}",
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
