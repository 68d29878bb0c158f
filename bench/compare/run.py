"""One measurement from its options to its result."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from bench import machine
from bench.compare.asking import CoordinatorSource, Source
from bench.compare.coverage import coverage
from bench.compare.measuring import Measured, measure, sources_of
from bench.compare.options import BenchOptions
from bench.compare.report import REFERENCE, report
from bench.prompts import fingerprint, load_prompts
from bench.rivals.modes import Mode, choose_modes
from bench.rivals.openai_source import OpenAISource
from bench.rivals.transformers_source import TransformersSource, transformers_process
from bench.stack.services import Models, running
from outrider.cli.board import Board
from outrider.cli.child import ServiceDiedError
from outrider.client import GenerationClient
from outrider.core.protocol.errors import OutriderError
from outrider.engine.compile.just_in_time import compiler_problem

WIDE_MLP = 16384
"""MLP width that gives the bundled target ten times its parameters, so that a draft step costs little beside it."""


class WideningError(OutriderError):
    """The widened target could not be made."""


async def run(options: BenchOptions, console: Console) -> dict[str, Any]:
    """Measures and returns the result; progress goes to `console`. Raises OutriderError."""
    modes = [*choose_modes(options.modes), *_external_modes(options)]
    target = str(widened(Path(options.target), console)) if options.wide else options.target
    prompts = load_prompts(options.prompts, options.num_prompts, tokenizer(Path(target)))
    models = Models(
        target=target,
        draft=options.draft,
        ngram_table=options.ngram_table,
        target_device=options.target_device,
        draft_device=options.draft_device,
        dtype=options.dtype,
        compile=compilation(options.compile, options.target_device, options.draft_device),
    )
    board = Board(console, show_logs=False)
    board.begin()
    try:
        async with contextlib.AsyncExitStack() as leaving:
            stack = await leaving.enter_async_context(running(modes, models, board))
            sources = sources_of(
                stack, modes, lambda mode: CoordinatorSource(stack.client(mode), speculate=mode.speculate)
            )
            sources |= await _external_sources(options, models, modes, leaving)
            board.settle()
            measured = await _measure(options, sources, prompts, console)
            round_trip_ms = await stack.pair(modes[0]).round_trip_ms()
    except ServiceDiedError:
        raise
    except OutriderError:
        board.show_tails()
        raise
    finally:
        board.settle()
    settings = {
        **asdict(options),
        "prompts": str(options.prompts) if options.prompts else "bundled",
        "prompts_sha256": fingerprint(prompts),
        "num_prompt_tokens": [len(prompt) for prompt in prompts],
        "target": Path(target).name,
        "draft": Path(options.draft).name,
        "ngram_table": Path(options.ngram_table).name,
    }
    settings["compile"] = models.compile
    found = {
        temperature: coverage(Path(options.draft), options.dtype, _lines(measured, prompts, temperature), temperature)
        for temperature in options.temperatures
    }
    facts = {**machine.facts(), "round_trip_ms": round(round_trip_ms, 3)}
    return report(measured, modes, coverage=found, settings=settings, machine=facts)


def _lines(
    measured: Sequence[Measured], prompts: Sequence[Sequence[int]], temperature: float
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Each prompt with the answer of the target alone."""
    answers = {
        each.prompt: each.sample.token_ids or ()
        for each in measured
        if each.mode == REFERENCE and each.temperature == temperature
    }
    return [(prompt, answers[index]) for index, prompt in enumerate(prompts)]


async def _measure(
    options: BenchOptions, sources: dict[str, Source], prompts: Sequence[Sequence[int]], console: Console
) -> list[Measured]:
    num_answers = len(sources) * (options.num_warm_ups + len(prompts) * len(options.temperatures))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("warming up", total=num_answers)

        def on_progress(each: Measured | None) -> None:
            description = "warming up" if each is None else f"{each.mode} {each.sample.ms_per_token:.2f} ms/token"
            progress.update(task, advance=1, description=description)

        return await measure(
            sources,
            prompts,
            options.temperatures,
            max_tokens=options.max_tokens,
            num_warm_ups=options.num_warm_ups,
            on_progress=on_progress,
        )


def _external_modes(options: BenchOptions) -> list[Mode]:
    modes: list[Mode] = []
    if options.external_openai is not None:
        about = f"{options.external_model} behind an OpenAI-compatible interface"
        modes.append(Mode(name="external_openai", about=about, external=True))
    if options.external_grpc is not None:
        modes.append(Mode(name="external_grpc", about="another coordinator", external=True))
    return modes


async def _external_sources(
    options: BenchOptions, models: Models, modes: Sequence[Mode], leaving: contextlib.AsyncExitStack
) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    names = {mode.name for mode in modes}
    if wanted := names & {"transformers", "transformers_assisted"}:
        process = await leaving.enter_async_context(transformers_process(models))
        for name in sorted(wanted):
            sources[name] = TransformersSource(process, assisted=name == "transformers_assisted")
    if options.external_openai is not None:
        sources["external_openai"] = OpenAISource(options.external_openai, options.external_model or "")
    if options.external_grpc is not None:
        client = await leaving.enter_async_context(GenerationClient(options.external_grpc))
        sources["external_grpc"] = CoordinatorSource(client)
    return sources


def compilation(wanted: str, *devices: str) -> str:
    """What to tell workers of compiling. `auto` would serve at once and compile while answers are measured: compile
    first, or not at all."""
    if wanted != "auto":
        return wanted
    return "off" if any(compiler_problem(torch.device(device)) for device in devices) else "on"


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises OutriderError."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise OutriderError(f"{folder} has no tokenizer.json; name a model folder with --target FOLDER")
    return Tokenizer.from_file(str(file))


def widened(target: Path, console: Console) -> Path:
    """The target with its MLP widened, which computes the same function; made once and kept. Raises WideningError."""
    digest = hashlib.sha256()
    for file in sorted(target.glob("*.safetensors")):
        digest.update(file.read_bytes())
    folder = Path.home() / ".cache" / "outrider" / "bench" / f"{target.name}-{digest.hexdigest()[:12]}-mlp{WIDE_MLP}"
    if (folder / "config.json").is_file():
        return folder
    console.print(f"widening {target.name} to an MLP of {WIDE_MLP}: {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "recipes.widen", str(target), str(folder), f"--mlp-width={WIDE_MLP}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WideningError(f"{target} could not be widened:\n{done.stderr.strip()}")
    return folder
