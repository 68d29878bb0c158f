"""`outrider bench`: its flags. The measuring itself is the package `bench`, which only a checkout has to have."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console

from outrider.cli import flags
from outrider.cli.child import Observer
from outrider.cli.up import choose_models
from outrider.core.errors import OutriderError

app = typer.Typer(help="Measure Outrider against the target alone and against others, side by side.")

Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.", metavar="FILE")]
Plots = Annotated[Path | None, typer.Option(help="Write plots to this folder, as PNG.", metavar="FOLDER")]


class BenchMissingError(OutriderError):
    """The measuring package, or what it needs, is not installed."""


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    target: flags.Target = None,
    draft: flags.Draft = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Widen the target's MLPs first: the same text at ten times the cost.")
    ] = False,
    target_device: flags.TargetDevice = "cpu",
    draft_device: flags.DraftDevice = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    compile: Annotated[str, typer.Option(help="Compile the workers' forward passes: auto, on or off.")] = "auto",
    modes: Annotated[
        str, typer.Option(help="What to compare: names of modes, of families of them, default, ablations, all.")
    ] = "default",
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, parted by lines of ---; default: bundled ones.", metavar="FILE")
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="Prompts to measure.", min=2)] = 16,
    warm_ups: Annotated[int, typer.Option(help="Prompts before those that count.", min=1)] = 2,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=2)] = 64,
    temperature: Annotated[
        list[float] | None, typer.Option(help="May be repeated; default: 0 (greedy) and 0.8.", min=0.0)
    ] = None,
    external_openai: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server to measure too.", metavar="URL")
    ] = None,
    external_model: Annotated[str | None, typer.Option(help="What that server calls its model.")] = None,
    external_grpc: Annotated[
        str | None, typer.Option(help="Another coordinator to measure too.", metavar="HOST:PORT")
    ] = None,
    as_json: Json = None,
    plots: Plots = None,
) -> None:
    """Measure in one run on this machine, prompt by prompt in turn, so that a noisy machine cancels out.

    Services start and stop by themselves. Ratios come with 95 % bootstrap intervals.
    """
    if context.invoked_subcommand is not None:
        return
    if external_openai is not None and external_model is None:
        raise typer.BadParameter("say what the server calls its model with --external-model NAME")
    target, draft = choose_models(target, draft, no_draft=False)
    if draft is None:
        raise typer.BadParameter("name the draft model of this target with --draft MODEL")
    options = _part("options").BenchOptions(
        target=target,
        draft=draft,
        target_device=target_device,
        draft_device=draft_device,
        dtype=dtype,
        compile=compile,
        wide=wide,
        modes=tuple(modes.split(",")),
        prompts=prompts,
        num_prompts=num_prompts,
        num_warm_ups=warm_ups,
        max_tokens=max_tokens,
        temperatures=tuple(temperature or (0.0, 0.8)),
        external_openai=external_openai,
        external_model=external_model,
        external_grpc=external_grpc,
    )
    result = asyncio.run(_part("run").run(options, Console(stderr=True)))
    _part("tables").show(result)
    if as_json is not None:
        _write(as_json, result)
    if plots is not None:
        _part("plots").plot(result, plots)


@app.command()
def synthetic(
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Also measure a few points on real services with forced times.")
    ] = False,
    verify_slope: Annotated[
        float, typer.Option(help="What each further token adds to a verify step, in verify steps.", min=0.0)
    ] = 0.0,
    num_tokens: Annotated[int, typer.Option(help="Tokens of each run.", min=50)] = 1000,
    as_json: Json = None,
    plots: Plots = None,
) -> None:
    """Map acceptance, draft step and delay with the real policies on a virtual clock, and compare with theory."""
    module = _part("synthetic")
    result = module.map_plane(verify_slope=verify_slope, num_tokens=num_tokens)
    result["machine"] = _part("machine").facts()
    if confirm:
        target, draft = choose_models(None, None, no_draft=False)
        models = _part("stack").Models(target=target, draft=draft or "", dtype="float32", compile="off")
        result["confirmed"] = asyncio.run(_part("confirm").confirm(models, Observer()))
    _part("tables").show_plane(result)
    if as_json is not None:
        _write(as_json, result)
    if plots is not None:
        _part("plots").plot(result, plots)


@app.command()
def quote(
    result: Annotated[Path, typer.Argument(help="A result in the repository, written with --json.", metavar="FILE")],
) -> None:
    """Print a result's tables as Markdown, for a page that quotes it."""
    print(_part("quote").quote(result, Path.cwd()))


def _part(name: str) -> ModuleType:
    """A module of the measuring package. Raises BenchMissingError."""
    try:
        return importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as error:
        raise BenchMissingError(
            f"{error.name} is not installed; from a checkout: pip install --editable '.[engine,bench]'"
        ) from error


def _write(path: Path, result: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
