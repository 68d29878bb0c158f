"""`python -m bench.simulate.fleet`: one fleet, or with `--scale` fleets that grow, on a virtual clock."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from bench import machine
from bench.columns import default_console, in_terminal
from bench.flags import with_flags
from bench.simulate.fleet.confirm import agrees, confirm
from bench.simulate.fleet.scale import COLUMNS, Run, faults, measure, name, sizes
from bench.simulate.fleet.settings import Settings
from bench.stack.models import Models
from bench.stack.preparing import prepared
from outrider.cli.child import Observer


@with_flags
def main(
    settings: Settings,
    scale: Annotated[
        int | None, Option(help="Fleets of 1, 4, 16, 64 and 128 verifiers up to this one.", metavar="N")
    ] = None,
    strike: Annotated[bool, Option("--faults", help="Sixteen verifiers of which one dies, freezes or drains.")] = False,
    confirmed: Annotated[
        bool, Option("--confirm", help="Also a small fleet on real services with forced steps, beside the same here.")
    ] = False,
    as_json: Annotated[Path | None, Option("--json", help="Write the result to this file.", metavar="FILE")] = None,
    plots: Annotated[Path | None, Option(help="Write plots to this folder, as PNG.", metavar="FOLDER")] = None,
) -> None:
    """Runs fleets of workers with production's policies, and tells how fast, how even and how busy they were.

    With `--confirm` the exit status is 1 if services and virtual clock differ by more than 15 %.
    """
    growing = list(sizes(settings, scale)) if scale else []
    runs = [*growing, *(faults(settings) if strike else ())]
    rows = measure(runs or [Run(settings=settings)])
    default_console().print(in_terminal("verifiers + drafters", COLUMNS, [(name(row), row) for row in rows]))
    result = {"benchmark": "bench.simulate.fleet", "machine": machine.facts(), "rows": rows}
    if confirmed:
        models = prepared(Models(ngram_table="", dtype="float32", compile="off"), Console(stderr=True))
        result["confirmed"] = asyncio.run(confirm(models, Observer()))
        for row in result["confirmed"]:
            verdict = "" if agrees(row) else ", too far apart"
            print(
                f"{row['num_clients']} clients: {row['on_services']:.1f} ms per token on services, "
                f"{row['on_virtual_clock']:.1f} here: {row['ratio']:.2f} times{verdict}"
            )
    if as_json is not None:
        as_json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if plots is not None:
        from bench.simulate.fleet.plots import plot

        plot(rows[: len(growing)] if growing else rows, plots)
    if not all(map(agrees, result.get("confirmed", ()))):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
