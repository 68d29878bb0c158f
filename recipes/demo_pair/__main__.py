"""`python -m recipes.demo_pair OUT`: the recipe on the command line."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Annotated

import transformers
import typer
from rich.console import Console

from recipes.demo_pair.pair import PairRun
from recipes.demo_pair.recipe import Precision, Recipe, RecipeError
from recipes.device import usable_device
from recipes.progress import progress_bars, reporter

DEFAULTS = Recipe()

app = typer.Typer(add_completion=False)


@app.command()
def run(
    out: Annotated[
        Path,
        typer.Argument(help="Folder to fill: new or empty, or one in which a run with the same flags was stopped."),
    ],
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda or cuda:N.")] = "cpu",
    target: Annotated[
        Path | None,
        typer.Option(help="Folder of a target that this recipe made: train only a draft, for that target."),
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(help="Folder of a draft that this recipe made: go on from it, for the same target."),
    ] = None,
    target_tokens: Annotated[int, typer.Option(min=1, help="Tokens on which the target is trained.")] = (
        DEFAULTS.target_tokens
    ),
    draft_tokens: Annotated[int, typer.Option(min=1, help="Tokens on which the draft is trained.")] = (
        DEFAULTS.draft_tokens
    ),
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic in training; float32 for devices without bfloat16. Saved is bfloat16."),
    ] = DEFAULTS.precision,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the models: faster steps; needs a C++ compiler, on a GPU triton.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides the initial weights and the order of the text.")] = DEFAULTS.seed,
) -> None:
    """Train a demonstration pair on the standard library of this Python.

    Makes OUT/target, OUT/draft and OUT/README.md. Stop it at any time: the same command goes on where it was stopped.
    The draft learns from source and from text that the target writes. With --target, OUT/target is not made.
    """
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    recipe = Recipe(target_tokens=target_tokens, draft_tokens=draft_tokens, precision=precision, seed=seed)
    try:
        place = usable_device(device)
        pair = PairRun(out, recipe, place, given_target=target, given_draft=draft, compiled=compiled)
        with console.status("Reading the standard library and training the tokenizer"):
            pair.prepare_text(Path(sysconfig.get_path("stdlib")))
        with progress_bars(console) as bars:
            pair.train_target(reporter(bars, "target"))
            pair.write_text(reporter(bars, "text"))
            pair.train_draft(reporter(bars, "draft"))
        with console.status("Measuring the pair on the held-out files"):
            figures = pair.finish()
    except RecipeError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error
    console.print(
        f"Held-out loss: target {figures.target_loss:.3f}, draft {figures.draft_loss:.3f} nats per token. "
        f"Agreement: greedy {figures.greedy_agreement:.1%}, top 3 {figures.top3_agreement:.1%}. "
        f"See {out / 'README.md'}."
    )


if __name__ == "__main__":
    app()
