"""A service's process: the cores it keeps to, its event loop, and its last word when it cannot serve."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any

import structlog
import uvloop

from outrider.core.protocol.errors import OutriderError
from outrider.machine.leaving import leave_at_exit
from outrider.machine.watchdog import watch


def run_process(cores: str, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `serve` on an event loop to its end, on the given `cores` (such as "0,1"; empty: any).

    Exits with a sentence and status 1 if it raises an OutriderError. Call it before any thread is started: threads
    inherit the cores. Either way the process leaves at its exit (`outrider/machine/leaving.py`), and before if its
    event loop hangs (`outrider/machine/watchdog.py`).
    """
    with last_word():
        _keep_to(cores)
        # A message costs a quarter less on this loop than on asyncio's own (docs/decisions/0012-messages.md).
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            watch(runner.get_loop())
            runner.run(serve())
    leave_at_exit(0)


@contextmanager
def last_word() -> Generator[None]:
    """Ends the process with a sentence and status 1 where an OutriderError leaves the context."""
    try:
        yield
    except OutriderError as error:
        structlog.get_logger().error("cannot serve", reason=str(error))
        leave_at_exit(1)
        sys.exit(1)


def _keep_to(cores: str) -> None:
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise OutriderError("--cores needs Linux; leave it out")
    try:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    except (OSError, OverflowError) as error:
        raise OutriderError(
            f"--cores {cores}: this process has no such cores; see `nproc` and `taskset -p $$`"
        ) from error
