"""A soak: short sessions without end through too little room, and what that leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench import machine
from bench.columns import default_console, new_table
from bench.compare.result import OURS
from bench.load.client import LoadClient, Recording
from bench.load.loads import until_idle
from bench.load.loops import lasting_loop
from bench.load.measuring import SERVICES
from bench.load.memory import GROWTH_MAX, GROWTH_SECONDS, WARM_UP_SHARE, Sample, growth, resident_bytes
from bench.load.options import SoakOptions
from bench.load.workload import Shape, requests
from bench.prompts import load_prompts, tokenizer
from bench.rivals.modes import MODES
from bench.stack.checkout import HERE
from bench.stack.models import Models, settings
from bench.stack.preparing import prepared
from bench.stack.services import Setup, Stack, running
from outrider.cli.board import Board
from outrider.cli.child import Child
from outrider.core.protocol.errors import OutriderError, SlotsExhaustedError
from outrider.core.protocol.messages import WorkerLoad

BENCHMARK = "outrider bench soak"
FORMAT = 2

SAMPLES = 600
"""Samples of each process's memory over a soak: one a second over ten minutes."""

KEPT_EVERY = 10
"""One sample in so many stands in the result."""

TEMPERATURE = 0.8
"""Of all requests. Sampled rounds run every line that greedy ones do."""

_MOMENTS = ("first_bytes", "warm_bytes", "last_bytes", "max_bytes")


class _Tally:
    """What became of the requests."""

    def __init__(self) -> None:
        self.num_answers = 0
        self.num_messages = 0
        self.failures: Counter[str] = Counter()

    def count(self, recording: Recording) -> None:
        """Takes note of one. Its content goes, or the soak itself would grow."""
        if recording.error is None:
            self.num_answers += 1
            self.num_messages += len(recording.messages)
        else:
            self.failures[type(recording.error).__name__] += 1


class _Left(NamedTuple):
    """What a worker reports when nobody is there any more."""

    worker: str
    load: WorkerLoad

    @property
    def leaks(self) -> bool:
        """Whether keys and values are still held."""
        return self.load.num_free_kv_tokens != self.load.num_kv_tokens


def soak(options: SoakOptions, console: Console) -> dict[str, Any]:
    """Soaks production's own services and returns the result; `passed` is its verdict. Raises OutriderError."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_soak(options, console))


async def _soak(options: SoakOptions, console: Console) -> dict[str, Any]:
    models = prepared(replace(options.models, ngram_table=""), console)
    corpus = load_prompts(None, None, tokenizer(Path(models.target)))
    mode, tally, seconds = MODES[OURS], _Tally(), options.minutes * 60.0
    setup = Setup(
        worker_flags=(
            f"--max-sessions={options.num_clients}",
            f"--max-context={max(options.prompt_lengths) + max(options.output_lengths)}",
            f"--kv-memory={options.kv_memory}",
        ),
        verify_flags=(f"--max-queue={options.max_queue}",),
        coordinator_flags=(f"--max-requests={2 * options.num_clients}",),
        checkouts={mode.pair: HERE},
    )
    shape = Shape(prompt_lengths=options.prompt_lengths, output_lengths=options.output_lengths, temperature=TEMPERATURE)
    board = Board(console, show_logs=False)
    board.begin()
    try:
        async with contextlib.AsyncExitStack() as leaving:
            stack = await leaving.enter_async_context(running([mode], models, board, setup))
            client = LoadClient(stack.address(mode))
            leaving.push_async_callback(client.close)
            board.settle()
            async with _sampling(stack.services, seconds, console) as samples:
                await lasting_loop(client.ask, requests(corpus, shape, 0), options.num_clients, seconds, tally.count)
            left = await _left(stack)
    except OutriderError:
        board.show_tails()
        raise
    finally:
        board.settle()
    return _report(options, models, tally, samples, left)


@contextlib.asynccontextmanager
async def _sampling(
    services: Sequence[Child], seconds: float, console: Console
) -> AsyncIterator[Mapping[str, list[Sample]]]:
    """Samples the memory of `services` meanwhile."""
    samples: dict[str, list[Sample]] = {child.name: [] for child in services}
    started = time.monotonic()

    async def sample(progress: Progress) -> None:
        task = progress.add_task("soaking", total=seconds)
        while True:
            now = time.monotonic() - started
            for child in services:
                samples[child.name].append(Sample(now, resident_bytes(child.process_id)))
            progress.update(task, completed=now)
            await asyncio.sleep(seconds / SAMPLES)

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        sampling = asyncio.create_task(sample(progress))
        try:
            yield samples
        finally:
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling


async def _left(stack: Stack) -> list[_Left]:
    return [
        _Left(kind, await until_idle(address, SERVICES[kind]))
        for pair in stack.pairs.values()
        for kind, address in pair.addresses.items()
    ]


def _report(
    options: SoakOptions, models: Models, tally: _Tally, samples: Mapping[str, Sequence[Sample]], left: Sequence[_Left]
) -> dict[str, Any]:
    num_refused = tally.failures.pop(SlotsExhaustedError.__name__, 0)
    memory = {name: growth(each) for name, each in samples.items()}
    return {
        "benchmark": BENCHMARK,
        "format": FORMAT,
        "machine": machine.facts(),
        "settings": settings(options, models),
        "num_answers": tally.num_answers,
        "num_refused": num_refused,
        "failures": dict(tally.failures),
        "memory": {
            name: {
                **{moment: getattr(each, moment) for moment in _MOMENTS},
                "growth_bytes": round(each.growth_bytes),
                "flat": each.flat,
                "megabytes": [round(sample.num_bytes / 1e6, 1) for sample in samples[name][::KEPT_EVERY]],
            }
            for name, each in memory.items()
        },
        "warm_up_share": WARM_UP_SHARE,
        "growth_max_bytes": GROWTH_MAX,
        "found_bytes_per_answer": _found_bytes(tally.num_answers, options.minutes * 60.0),
        "left": {each.worker: {**each.load._asdict(), "leaks": each.leaks} for each in left},
        "passed": (
            tally.num_answers > 0
            and not tally.failures
            and all(each.flat for each in memory.values())
            and not any(each.leaks for each in left)
        ),
    }


def _found_bytes(num_answers: int, seconds: float) -> float | None:
    """The least leak with every answer that fails such a soak; None if there was no answer."""
    return round(GROWTH_MAX * seconds / GROWTH_SECONDS / num_answers, 1) if num_answers else None


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """The result as a table, and its verdict in words."""
    console = console or default_console()
    minutes = result["settings"]["minutes"]
    table = new_table(
        f"{result['num_answers']} answers, {result['num_refused']} refused, {minutes:g} minutes",
        *("start", "warm", "end", "most", "in 10 minutes", ""),
    )
    for name, each in result["memory"].items():
        table.add_row(
            name,
            *(f"{each[moment] / 1e6:.1f} MB" for moment in _MOMENTS),
            f"{each['growth_bytes'] / 1e6:+.2f} MB",
            "flat" if each["flat"] else "GROWS",
        )
    console.print(table)
    for name, each in result["left"].items():
        held = each["num_kv_tokens"] - each["num_free_kv_tokens"]
        room = f"{name}: no session left, {held} of {each['num_kv_tokens']} tokens' room held"
        console.print(f"{room}{': LEAKS' if each['leaks'] else ''}")
    for name, count in result["failures"].items():
        console.print(f"{count} answers FAILED: {name}")
    console.print(
        f"{'passed' if result['passed'] else 'FAILED'} (warm from minute {result['warm_up_share'] * minutes:.3g} on; "
        f"memory grows if from there to the end it does by more than {result['growth_max_bytes'] / 1e6:g} MB in 10 "
        f"minutes, here {result['found_bytes_per_answer'] or 0:,.0f} bytes with every answer)"
    )
