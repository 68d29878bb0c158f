"""One measurement from its options to its result."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench import machine
from bench.compare.asking import CoordinatorSource, Source
from bench.compare.coverage import coverage
from bench.compare.measuring import Measured, measure, sources_of
from bench.compare.options import BenchOptions
from bench.compare.report import report
from bench.compare.result import REFERENCE, Result
from bench.prompts import fingerprint, load_prompts, tokenizer
from bench.rivals.modes import Mode, choose_modes
from bench.rivals.openai_source import OpenAISource
from bench.rivals.options import NO_RIVALS
from bench.rivals.running import rivals_of, running_rivals
from bench.rivals.transformers_source import TransformersSource, transformers_process
from bench.stack.models import Models, settings
from bench.stack.preparing import prepared
from bench.stack.services import DEFAULT_SETUP, Stack, running
from outrider.cli.board import Board
from outrider.client import NO_RETRY, GenerationClient
from outrider.core.protocol.errors import OutriderError


class NoDelayError(OutriderError):
    """Other systems cannot be compared at the delays that were asked for."""


async def run(options: BenchOptions, console: Console) -> Result:
    """Measures and returns the result; progress goes to `console`. Raises OutriderError."""
    load_average = round(os.getloadavg()[0], 1)
    models = prepared(options.models, console)
    prompts = load_prompts(options.prompts, options.num_prompts, tokenizer(Path(models.target)))
    rivals = rivals_of(options.rivals, models, max(map(len, prompts)) + options.max_tokens)
    modes = [*choose_modes(options.modes), *(rival.mode for rival in rivals), *_external_modes(options)]
    if any(mode.external for mode in modes) and 0.0 not in options.delays_ms:
        raise NoDelayError("other systems have no network within: compare them at a --delay-ms of 0 as well")
    with Board(console, show_logs=False).watching() as board:
        async with contextlib.AsyncExitStack() as leaving:
            setup = replace(DEFAULT_SETUP, delays_ms=options.delays_ms)
            stack = await leaving.enter_async_context(running(modes, models, board, setup))
            sources = {delay_ms: _own_sources(stack, modes, delay_ms) for delay_ms in options.delays_ms}
            if 0.0 in sources:
                sources[0.0] |= await _external_sources(options, models, modes, leaving)
                sources[0.0] |= await leaving.enter_async_context(running_rivals(rivals, board))
            board.settle()
            measured = await _measure(options, sources, prompts, console)
            round_trip_ms = await stack.pair(modes[0]).round_trip_ms()
    said = {
        **settings(replace(options, rivals=NO_RIVALS), models),
        "rivals": options.rivals.names,
        "prompts": str(options.prompts) if options.prompts else "bundled",
        "prompts_sha256": fingerprint(prompts),
        "num_prompt_tokens": [len(prompt) for prompt in prompts],
    }
    found = {
        temperature: coverage(Path(models.draft), models.dtype, _lines(measured, prompts, temperature), temperature)
        for temperature in options.temperatures
    }
    facts = {**machine.facts(), "load_average": load_average, "round_trip_ms": round(round_trip_ms, 3)}
    return report(measured, modes, coverage=found, settings=said, machine=facts)


def _own_sources(stack: Stack, modes: Sequence[Mode], delay_ms: float) -> dict[str, Source]:
    def ask(mode: Mode) -> Source:
        return CoordinatorSource(stack.client(mode, delay_ms), speculate=mode.speculate)

    return sources_of(stack, modes, ask, delay_ms)


def _lines(
    measured: Sequence[Measured], prompts: Sequence[Sequence[int]], temperature: float
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Each prompt with the answer of the target alone."""
    answers = {
        each.prompt: each.sample.token_ids or ()
        for each in measured
        if each.mode == REFERENCE and each.condition.temperature == temperature
    }
    return [(prompt, answers[index]) for index, prompt in enumerate(prompts)]


async def _measure(
    options: BenchOptions,
    sources: Mapping[float, Mapping[str, Source]],
    prompts: Sequence[Sequence[int]],
    console: Console,
) -> list[Measured]:
    num_answers = sum(map(len, sources.values())) * (options.num_warm_ups + len(prompts) * len(options.temperatures))
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
        client = await leaving.enter_async_context(GenerationClient(options.external_grpc, retry=NO_RETRY))
        sources["external_grpc"] = CoordinatorSource(client)
    return sources
