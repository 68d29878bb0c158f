"""What `outrider up` and `outrider run` do with the services."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from outrider.cli.board import Board
from outrider.cli.certificates import AUTHORITY
from outrider.cli.display import Display
from outrider.cli.generate import conclude, generate
from outrider.cli.request import Request
from outrider.cli.up import services
from outrider.cli.up_options import UpOptions

_WARM_UP_TOKENS = 8
"""Tokens of a generation before those that are compared, so that the first of them does not pay for first-time work."""


def until_signalled(main: Coroutine[Any, Any, None]) -> bool:
    """Runs `main` to its end, or until SIGINT or SIGTERM cancels it. Returns whether a signal did."""

    async def cancellable() -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await main

    try:
        asyncio.run(cancellable())
    except asyncio.CancelledError:
        return True
    return False


async def serve(options: UpOptions, console: Console) -> None:
    """Keeps the services up, with their logs on `console`, until it is cancelled.

    Raises OutriderError, and OutputError once the services have drained if `console` cannot be written.
    """
    task = asyncio.current_task()
    assert task is not None
    board = Board(console, show_logs=True, names=options.names, on_failure=task.cancel)
    board.begin()
    try:
        async with services(options, board) as running:
            board.settle()
            others = running.coordinators[1:]
            also = f" (or at {', '.join(others)})" if others else ""
            scheme, flag = ("http", "") if options.tls is None else ("https", f"--tls-ca {options.tls / AUTHORITY} ")
            if running.http is not None:
                console.print(Text(f"OpenAI-compatible: {scheme}://{running.http}/v1"), soft_wrap=True)
            command = f"outrider generate {flag}--address {running.coordinator} 'import os'"
            console.print(Text(f"Ready. Ctrl-C stops. Try: {command}{also}", "bold"), soft_wrap=True)
            await running.fail()
    except asyncio.CancelledError:
        if board.failure is not None:
            raise board.failure from None
        raise
    finally:
        board.settle()


async def run(options: UpOptions, request: Request, out: Console, err: Console) -> None:
    """Starts the services, generates, generates the same by the target alone, compares, and stops the services.

    Of the logs warnings are shown, and the rest only when something fails. Raises OutriderError.
    """
    with Board(err, show_logs=False, names=options.names).watching() as board:
        async with services(replace(options, compile_first=True), board) as running:
            await generate(request.but(max_tokens=_WARM_UP_TOKENS), running.coordinator)
            board.settle()
            prompt = request.prompt if isinstance(request.prompt, str) else ""
            display = Display(out, prompt, num_completions=request.options.num_completions)
            answer = await generate(request, running.coordinator, display)
            with err.status("The same prompt by the target alone"):
                target_only = await generate(request.by_target_alone(answer.started.seed), running.coordinator)
            conclude(answer, target_only, out, err)
