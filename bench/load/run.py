"""One measurement under load from its options to its result."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import machine
from bench.load.client import LoadClient
from bench.load.loads import LoadLog
from bench.load.measuring import SERVICES, LoadedMode, Sweep, measure, sweep_of
from bench.load.options import LoadOptions
from bench.load.report import report
from bench.load.result import Result
from bench.prompts import fingerprint, load_prompts, tokenizer
from bench.rivals.modes import choose_own_modes
from bench.stack.models import settings
from bench.stack.preparing import prepared
from bench.stack.services import Setup, running, split_cores
from outrider.cli.board import Board
from recipes.stretch import stretch

OPEN_SESSIONS = 64
"""Room of the workers where requests come by themselves: more wait, or are refused."""


def run(options: LoadOptions, console: Console, sweep: Sweep | None = None) -> Result:
    """Measures and returns the result; progress goes to `console`. A `sweep` has other points than the options name.

    Raises OutriderError.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(options, console, sweep or sweep_of(options)))


async def _run(options: LoadOptions, console: Console, sweep: Sweep) -> Result:
    modes = choose_own_modes(options.modes)
    models = prepared(options.models, console)
    corpus = load_prompts(options.prompts, None, tokenizer(Path(models.target)))
    num_sessions: int = max([*options.concurrency, *([OPEN_SESSIONS] if options.rates else [])])
    num_sessions += bool(options.long_prompt)
    max_context = max(*options.prompt_lengths, options.long_prompt) + max(options.output_lengths)
    setup = Setup(
        worker_flags=(
            f"--max-sessions={num_sessions}",
            f"--max-context={max_context}",
            *([f"--kv-memory={options.kv_memory}"] if options.kv_memory is not None else []),
        ),
        verify_flags=(f"--max-queue={options.max_queue}",) if options.max_queue is not None else (),
        coordinator_flags=(f"--max-requests={2 * num_sessions}",),
        delays_ms=options.delays_ms,
    )
    with Board(console, show_logs=False).watching() as board:
        async with contextlib.AsyncExitStack() as leaving:
            stretched: dict[str, str] = {}
            if options.long_prompt:
                folder = Path(leaving.enter_context(TemporaryDirectory(prefix="outrider-bench-")))
                stretched = {
                    kind: str(stretch(model, folder / kind, max_context))
                    for kind, model in {"target": models.target, "draft": models.draft}.items()
                }
            stack = await leaving.enter_async_context(running(modes, replace(models, **stretched), board, setup))
            logs: dict[str, LoadLog] = {}
            for name, pair in stack.pairs.items():
                logs[name] = LoadLog()
                await leaving.enter_async_context(logs[name].following(pair.addresses["verify"], SERVICES["verify"]))
            loaded: dict[str, LoadedMode] = {}
            for mode in modes:
                clients = {
                    delay_ms: LoadClient(stack.address(mode, delay_ms), speculate=mode.speculate)
                    for delay_ms in options.delays_ms
                }
                for client in clients.values():
                    leaving.push_async_callback(client.close)
                loaded[mode.name] = LoadedMode(mode, clients, stack.pair(mode), logs[mode.pair])
            board.settle()
            leaving.enter_context(keeping_to(split_cores(models)[1]))
            with _progress(console) as progress:
                task = progress.add_task("")
                passes = await measure(
                    loaded, corpus, options, sweep, lambda description: progress.update(task, description=description)
                )
            round_trip_ms = await stack.pair(modes[0]).round_trip_ms()
    said = {
        **settings(options, models),
        "prompts": str(options.prompts) if options.prompts else "bundled",
        "prompts_sha256": fingerprint(corpus),
    }
    facts = {**machine.facts(), "round_trip_ms": round(round_trip_ms, 3)}
    return report(passes, modes, options.objective, settings=said, machine=facts)


@contextlib.contextmanager
def keeping_to(cores: Sequence[int]) -> Iterator[None]:
    """Keeps every thread of this process to `cores` meanwhile, if there are any.

    The load comes from the cores of drafter and coordinator: what it costs, it costs every mode, and never the target's
    steps.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    _keep_threads(cores)
    try:
        yield
    finally:
        _keep_threads(sorted(before))


def _keep_threads(cores: Sequence[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)
