"""`outrider bench`: its commands. What measures is imported when it is asked for: it needs torch, and `outrider` must
not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Option

from bench.against.options import AgainstOptions
from bench.compare.options import BenchOptions
from bench.flags import with_flags
from bench.gpu.options import GpuOptions
from bench.load.options import LoadOptions, NeverSlowerOptions, SoakOptions
from bench.records import as_json
from bench.stack.models import Models
from outrider.cli.child import Observer

app = typer.Typer(help="Measure Outrider against the target alone and against others, side by side.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where a result goes, beside the terminal."""

    as_json: Annotated[Path | None, Option("--json", help="Write the result to this file.", metavar="FILE")] = None

    def keep(self, result: Mapping[str, Any]) -> None:
        """Writes it, if it shall be written."""
        if self.as_json is not None:
            self.as_json.parent.mkdir(parents=True, exist_ok=True)
            self.as_json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


Plots = Annotated[Path | None, Option(help="Write plots to this folder, as PNG.", metavar="FOLDER")]


@app.callback(invoke_without_command=True)
@with_flags
def bench(context: typer.Context, options: BenchOptions, kept: Result, plots: Plots = None) -> None:
    """Measure in one run on this machine, prompt by prompt in turn, so that a noisy machine cancels out.

    Services start and stop by themselves. Ratios come with 95 % bootstrap intervals.
    """
    if context.invoked_subcommand is not None:
        return
    if options.external_openai is not None and options.external_model is None:
        raise typer.BadParameter("say what the server calls its model with --external-model NAME")
    from bench.compare.run import run
    from bench.compare.tables import show

    result = asyncio.run(run(options, Console(stderr=True)))
    kept.keep(as_json(result))
    show(result)
    if plots is not None:
        from bench.compare.plots import plot

        plot(result, plots)


@app.command()
@with_flags
def load(options: LoadOptions, kept: Result, plots: Plots = None) -> None:
    """Put many requests at a time on each mode: throughput, times of tokens, and how many were soon enough.

    Loads are put on all modes in turn, pass after pass, so that a noisy machine cancels out. Ratios come with 95 %
    bootstrap intervals. All services start and stop by themselves.
    """
    if not options.concurrency and not options.rates:
        raise typer.BadParameter("say how much load there is with --concurrency or --rates")
    from bench.load.run import run
    from bench.load.tables import show

    result = run(options, Console(stderr=True))
    kept.keep(as_json(result))
    show(result)
    if plots is not None:
        from bench.load.plots import plot

        plot(result, plots)


@app.command("never-slower")
@with_flags
def never_slower(options: NeverSlowerOptions, kept: Result) -> None:
    """See whether speculation is ever slower than the target alone: loads, temperatures, targets and networks.

    Blocks of both follow one another in the order A B B A, so that a noisy machine cancels out. The exit status is 1 if
    the whole 95 % bootstrap interval of a ratio lies below 0.98.
    """
    from bench.load.cells import show
    from bench.load.never_slower import measure

    result = measure(options, Console(stderr=True))
    kept.keep(as_json(result))
    show(result)
    if result.slower:
        raise typer.Exit(1)


@app.command()
@with_flags
def against(options: AgainstOptions, kept: Result) -> None:
    """Compare this checkout with another one: what a change costs, in time per token.

    Both run their own services with the same models on the same cores. Every round of requests is put to both before
    the next, so that a noisy machine cancels out. The ratio comes with its 95 % bootstrap interval.
    """
    from bench.against.result import show
    from bench.against.run import run

    result = run(options, Console(stderr=True))
    kept.keep(as_json(result))
    show(result)


@app.command()
@with_flags
def soak(options: SoakOptions, kept: Result) -> None:
    """Send short requests without end through too little room, and see whether memory stays flat.

    The first half warms up: it is told, not judged. The exit status is 1 if a service's resident memory grew in the
    second half at more than 4 MB in ten minutes (by the median of slopes), if a worker still holds keys and
    values at the end, or if an answer failed otherwise than by a refusal.
    """
    from bench.load import soak as soaking

    result = soaking.soak(options, Console(stderr=True))
    kept.keep(result)
    soaking.show(result)
    if not result["passed"]:
        raise typer.Exit(1)


@app.command()
@with_flags
def gpu(options: GpuOptions, kept: Result) -> None:
    """Time steps on a CUDA device beside the least that its memory and its products allow, as both are measured.

    A target and a draft of known shapes get random weights on the device, so that no checkpoint is needed. No GPU has
    run this yet. Where there is none it says so, with the exit status 1.
    """
    from bench.gpu.result import show
    from bench.gpu.run import run

    result = run(options, Console(stderr=True))
    kept.keep(as_json(result))
    show(result)


@app.command()
@with_flags
def synthetic(
    kept: Result,
    confirm: Annotated[
        bool, Option("--confirm", help="Also measure a few points on real services with forced times.")
    ] = False,
    verify_slope: Annotated[
        float, Option(help="What each further token adds to a verify step, in verify steps.", min=0.0)
    ] = 0.0,
    num_tokens: Annotated[int, Option(help="Tokens of each run.", min=50)] = 1000,
    plots: Plots = None,
) -> None:
    """Map acceptance, draft step and delay with the real policies on a virtual clock, and compare with theory."""
    from bench import machine
    from bench.compare.plane_tables import show
    from bench.simulate.synthetic import map_plane

    result = map_plane(verify_slope=verify_slope, num_tokens=num_tokens)
    result["machine"] = machine.facts()
    if confirm:
        from bench.simulate.confirm import confirm as confirmed
        from bench.stack.preparing import prepared

        models = prepared(Models(ngram_table="", dtype="float32", compile="off"), Console(stderr=True))
        result["confirmed"] = asyncio.run(confirmed(models, Observer()))
    kept.keep(result)
    show(result)
    if plots is not None:
        from bench.compare.plane_plots import plot

        plot(result, plots)


@app.command()
def quote(
    result: Annotated[
        Path, typer.Argument(help="A result, written with --json.", metavar="FILE", exists=True, dir_okay=False)
    ],
) -> None:
    """Print a result's tables as Markdown, for a page that quotes it."""
    from bench.compare import quote

    print(quote.quote(result, Path.cwd()))
