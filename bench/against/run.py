"""One comparison of two checkouts from its options to its result."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import machine
from bench.against.measuring import OTHER, PROMPT_TOKENS, THIS, Round, Works, measure, works
from bench.against.options import AgainstOptions
from bench.against.result import Result, compared
from bench.compare.measuring import order
from bench.load.client import LoadClient
from bench.load.run import keeping_to
from bench.prompts import load_prompts, tokenizer
from bench.rivals.modes import Mode
from bench.stack.checkout import HERE, checkout_at
from bench.stack.models import Models, settings
from bench.stack.preparing import prepared
from bench.stack.services import Setup, running, split_cores
from outrider.cli.board import Board

SESSIONS_MIN = 2
"""Room of the workers: one session may not have left when the next one comes."""


def run(options: AgainstOptions, console: Console) -> Result:
    """Measures and returns the result; progress goes to `console`. Raises OutriderError."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(options, console))


async def _run(options: AgainstOptions, console: Console) -> Result:
    checkouts = {THIS: HERE, OTHER: checkout_at(options.other, options.other_python)}
    models = prepared(options.models, console)
    corpus = load_prompts(None, None, tokenizer(Path(models.target)))
    num_sessions = max(SESSIONS_MIN, options.num_clients)
    setup = Setup(
        worker_flags=(f"--max-sessions={num_sessions}", f"--max-context={PROMPT_TOKENS + options.max_tokens}"),
        coordinator_flags=(f"--max-requests={2 * num_sessions}",),
        checkouts=checkouts,
    )
    asked = works(corpus, options)
    rounds: list[Round] = []
    for life in range(options.num_lives):
        modes = [Mode(name=name, about="", pair=name) for name in order([THIS, OTHER], life)]
        rounds += await _live(modes, models, setup, asked, options, console)
    said = settings(replace(options, other=Path(options.other.name), other_python=None), models)
    return Result(
        machine=machine.facts(),
        settings={**said, "other": options.other.name},
        revisions={name: _revision(checkout.root) for name, checkout in checkouts.items()},
        comparisons=compared(rounds),
    )


async def _live(
    modes: Sequence[Mode], models: Models, setup: Setup, asked: Works, options: AgainstOptions, console: Console
) -> list[Round]:
    """Starts the services in the order of `modes`, measures, and stops them."""
    with Board(console, show_logs=False).watching() as board:
        async with contextlib.AsyncExitStack() as leaving:
            stack = await leaving.enter_async_context(running(modes, models, board, setup))
            clients: dict[str, LoadClient] = {}
            for mode in modes:
                clients[mode.name] = LoadClient(stack.address(mode), speculate=not options.target_only)
                leaving.push_async_callback(clients[mode.name].close)
            board.settle()
            leaving.enter_context(keeping_to(split_cores(models)[1]))
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task("")
                return await measure(
                    clients, asked, options, lambda description: progress.update(task, description=description)
                )


def _revision(root: Path) -> str:
    """As git names what is checked out there; `unknown` if it does not."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
