"""`outrider bench`: its commands and flags.

What measures is imported when it is asked for: it needs torch, and `outrider` must not.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from outrider.cli import flags
from outrider.cli.child import Observer
from outrider.cli.up import choose_models
from outrider.core.protocol.errors import OutriderError

app = typer.Typer(help="Measure Outrider against the target alone and against others, side by side.")

Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Compile = Annotated[str, typer.Option(help="Compile the workers' forward passes: auto, on or off.")]
Wide = Annotated[
    bool, typer.Option("--wide", help="Widen the target's MLPs first: the same text at ten times the cost.")
]
Prompts = Annotated[
    Path | None, typer.Option(help="Prompts, parted by lines of ---; default: bundled ones.", metavar="FILE")
]
PromptLengths = Annotated[str, typer.Option(help="Tokens of a prompt: one of these, by chance.")]
OutputLengths = Annotated[str, typer.Option(help="Tokens of an answer: one of these, by chance.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.", metavar="FILE")]
Plots = Annotated[Path | None, typer.Option(help="Write plots to this folder, as PNG.", metavar="FOLDER")]


class NotInstalledError(OutriderError):
    """Something that the benchmark needs is not installed."""


Number = TypeVar("Number", int, float)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    target: flags.Target = None,
    draft: flags.Draft = None,
    ngram_table: flags.NgramTable = None,
    wide: Wide = False,
    target_device: flags.TargetDevice = "cpu",
    draft_device: flags.DraftDevice = "cpu",
    dtype: Dtype = "bfloat16",
    compile: Compile = "auto",
    modes: Annotated[
        str, typer.Option(help="What to compare: names of modes, of families of them, default, ablations, all.")
    ] = "default",
    prompts: Prompts = None,
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
    target, draft, ngram_table = _models(target, draft, ngram_table)
    options = _part("compare.options").BenchOptions(
        target=target,
        draft=draft,
        ngram_table=ngram_table,
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
    result = asyncio.run(_part("compare.run").run(options, Console(stderr=True)))
    _part("compare.tables").show(result)
    _keep(result, as_json, plots, "compare.plots")


@app.command()
def load(
    target: flags.Target = None,
    draft: flags.Draft = None,
    ngram_table: flags.NgramTable = None,
    wide: Wide = False,
    target_device: flags.TargetDevice = "cpu",
    draft_device: flags.DraftDevice = "cpu",
    dtype: Dtype = "bfloat16",
    compile: Compile = "auto",
    modes: Annotated[
        str, typer.Option(help="What to compare; load is the target alone, ours, and padded speculation.")
    ] = "load",
    concurrency: Annotated[
        str, typer.Option(help="Numbers of clients that ask again when they are answered.")
    ] = "1,4,8,16,24",
    rates: Annotated[
        str, typer.Option(help="Requests per second that come by themselves, such as 2,4,8; default: none.")
    ] = "",
    rate_seconds: Annotated[float, typer.Option(help="How long those keep coming in one pass.", min=0.1)] = 8.0,
    minutes: Annotated[
        float, typer.Option(help="How long to measure, after start and warm-up; three passes are made at least.", min=0)
    ] = 4.5,
    prompts: Prompts = None,
    prompt_lengths: PromptLengths = "32,64,128",
    output_lengths: OutputLengths = "32,64",
    temperature: Annotated[
        list[float] | None, typer.Option(help="May be repeated; default: 0 (greedy).", min=0.0)
    ] = None,
    long_prompt: Annotated[
        int,
        typer.Option(
            help="Put each load on the modes once more, beside a client that asks one prompt of so many tokens after "
            "another, and compare times between tokens; 0: do not. Models are given positions enough.",
            min=0,
        ),
    ] = 0,
    slo_first_token_ms: Annotated[
        float, typer.Option(help="Longest time to the first token of an answer that is soon enough.", min=0)
    ] = 2000.0,
    slo_inter_token_ms: Annotated[float, typer.Option(help="Longest mean time between its tokens.", min=0)] = 100.0,
    kv_memory: Annotated[str | None, typer.Option(help="Both workers' --kv-memory; default: theirs.")] = None,
    max_queue: Annotated[int | None, typer.Option(help="The verifier's --max-queue; default: its own.", min=0)] = None,
    as_json: Json = None,
    plots: Plots = None,
) -> None:
    """Put many requests at a time on each mode: throughput, times of tokens, and how many were soon enough.

    Loads are put on all modes in turn, pass after pass, so that a noisy machine cancels out. Ratios come with 95 %
    bootstrap intervals. All services start and stop by themselves.
    """
    if not concurrency and not rates:
        raise typer.BadParameter("say how much load there is with --concurrency or --rates")
    target, draft, ngram_table = _models(target, draft, ngram_table)
    options = _part("load.options").LoadOptions(
        target=target,
        draft=draft,
        ngram_table=ngram_table,
        target_device=target_device,
        draft_device=draft_device,
        dtype=dtype,
        compile=compile,
        wide=wide,
        modes=tuple(modes.split(",")),
        concurrency=_numbers(concurrency, int, "--concurrency"),
        rates=_numbers(rates, float, "--rates"),
        rate_seconds=rate_seconds,
        minutes=minutes,
        prompts=prompts,
        prompt_lengths=_numbers(prompt_lengths, int, "--prompt-lengths"),
        output_lengths=_numbers(output_lengths, int, "--output-lengths"),
        temperatures=tuple(temperature or (0.0,)),
        long_prompt=long_prompt,
        objective=_part("load.answer").Objective(slo_first_token_ms, slo_inter_token_ms),
        kv_memory=kv_memory,
        max_queue=max_queue,
    )
    result = _part("load.run").run(options, Console(stderr=True))
    _part("load.tables").show(result)
    _keep(result, as_json, plots, "load.plots")


@app.command()
def soak(
    target: flags.Target = None,
    draft: flags.Draft = None,
    dtype: Dtype = "bfloat16",
    compile: Compile = "auto",
    minutes: Annotated[float, typer.Option(help="How long.", min=0.05)] = 10.0,
    clients: Annotated[int, typer.Option(help="How many clients, each asking again when it is answered.", min=1)] = 32,
    prompt_lengths: PromptLengths = "16,32,64,128",
    output_lengths: OutputLengths = "8,16,32",
    kv_memory: Annotated[str, typer.Option(help="Both workers' --kv-memory, to be too little.")] = "16MB",
    max_queue: Annotated[int, typer.Option(help="The verifier's --max-queue.", min=0)] = 8,
    as_json: Json = None,
) -> None:
    """Send short requests without end through too little room, and see whether memory stays flat.

    The first half warms up: it is told, not judged. The exit status is 1 if a service's resident memory grew in the
    second half at more than 4 MB in ten minutes (by the median of slopes), if a worker still holds keys and
    values at the end, or if an answer failed otherwise than by a refusal.
    """
    target, draft, _ = _models(target, draft, "")
    module = _part("load.soak")
    options = _part("load.options").SoakOptions(
        target=target,
        draft=draft,
        dtype=dtype,
        compile=compile,
        minutes=minutes,
        num_clients=clients,
        prompt_lengths=_numbers(prompt_lengths, int, "--prompt-lengths"),
        output_lengths=_numbers(output_lengths, int, "--output-lengths"),
        kv_memory=kv_memory,
        max_queue=max_queue,
    )
    result = module.soak(options, Console(stderr=True))
    module.show(result)
    _keep(result, as_json)
    if not result["passed"]:
        raise typer.Exit(1)


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
    module = _part("simulate.synthetic")
    result = module.map_plane(verify_slope=verify_slope, num_tokens=num_tokens)
    result["machine"] = _part("machine").facts()
    if confirm:
        target, draft, _ = _models(None, None, "")
        models = _part("stack.services").Models(target=target, draft=draft, dtype="float32", compile="off")
        result["confirmed"] = asyncio.run(_part("simulate.confirm").confirm(models, Observer()))
    _part("compare.tables").show_plane(result)
    _keep(result, as_json, plots, "compare.plots")


@app.command()
def quote(
    result: Annotated[Path, typer.Argument(help="A result in the repository, written with --json.", metavar="FILE")],
) -> None:
    """Print a result's tables as Markdown, for a page that quotes it."""
    print(_part("compare.quote").quote(result, Path.cwd()))


def _part(name: str) -> ModuleType:
    """A module of the measuring package. Raises NotInstalledError."""
    try:
        return importlib.import_module(f"bench.{name}")
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{error.name} is not installed: pip install --editable '.[engine,bench]'") from error


def _models(target: str | None, draft: str | None, ngram_table: str | None) -> tuple[str, str, str]:
    models = choose_models(target, draft, ngram_table, no_draft=False)
    if models.draft is None:
        raise typer.BadParameter("name the draft model of this target with --draft MODEL")
    return models.target, models.draft, models.ngram_table


def _numbers(text: str, kind: Callable[[str], Number], flag: str) -> tuple[Number, ...]:
    """The positive numbers in `text`, parted by commas. Raises typer.BadParameter."""
    try:
        numbers = tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of numbers; write {flag} 1,2,3") from error
    if any(number <= 0 for number in numbers):
        raise typer.BadParameter(f"{flag} takes numbers above 0, not {text}")
    return numbers


def _keep(
    result: dict[str, object], as_json: Path | None, plots: Path | None = None, plotting: str = "compare.plots"
) -> None:
    """Writes the result, and the plots that the module `plotting` makes of it, where the flags say."""
    if as_json is not None:
        as_json.parent.mkdir(parents=True, exist_ok=True)
        as_json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if plots is not None:
        _part(plotting).plot(result, plots)
