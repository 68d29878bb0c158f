"""`outrider distill`: the command. What trains is imported when it is asked for: it needs torch, and `outrider` must
not."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from outrider.cli.door import check
from outrider.cli.group import Group, grouped, parameters_of
from outrider.cli.up_options import UpOptions
from outrider.cli.value import taken_by
from outrider.worker.config import check_device, default_compile_cache
from recipes.demo_pair.recipe import RecipeError
from recipes.distill.options import Options
from recipes.progress import progress_bars, reporter


@grouped(options=Group(parameters_of(Options), Options))
def distill(
    out: Annotated[
        Path,
        typer.Argument(
            help="Folder of the draft: new or empty, or one in which a run with the same flags was stopped.",
            metavar="OUT",
        ),
    ],
    options: Options,
    device: Annotated[
        str, typer.Option(help="Where to train: cpu, cuda or cuda:N.", callback=taken_by(check_device))
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU. Default: torch's.", min=1)] = None,
) -> None:
    """Train a draft model for a target on text that this target writes; only from a checkout.

    OUT becomes a folder for `outrider up --draft OUT`, with a README of what it reaches on held-out text. Stop it at
    any time: the same command goes on where it was stopped.
    """
    console = Console()
    try:
        import torch
        import transformers

        from recipes.device import usable_device
        from recipes.distill.report import sentences, table
        from recipes.distill.run import Distillation
    except ModuleNotFoundError as error:
        raise RecipeError(f"{error.name} is not installed: pip install --editable '.[engine,bench]'") from error
    check(UpOptions(target=str(options.target), draft=None if options.draft is None else str(options.draft)))
    transformers.utils.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    run = Distillation(out, options, usable_device(device), default_compile_cache())
    if run.is_done:
        console.print(f"{out} is finished; see {out / 'README.md'}.", highlight=False)
        return
    with progress_bars(console) as bars:
        run.write(reporter(bars, "text"))
        before = run.measure_before(reporter(bars, "before"))
        run.train(reporter(bars, "draft"))
        reached = run.finish(before, ["outrider", *map(shlex.quote, sys.argv[1:])], reporter(bars, "after"))
    console.print(table(reached, options.depths))
    for sentence in sentences(reached):
        console.print(sentence, highlight=False)
    console.print(f"outrider up --target {options.target} --draft {out}", highlight=False)
