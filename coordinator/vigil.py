"""Vigil: asks a worker that keeps sessions waiting for a sign of life, and finds when to leave it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from outrider.core.coordinate.liveness import ALONE_SECONDS, Liveness
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import WorkerLoad

RECOVERY_SECONDS_MIN = 0.5
"""First pause between two questions whether a worker that was left, or did not say what it serves, is back."""

RECOVERY_SECONDS_MAX = 8.0
"""Longest such pause; it doubles from question to question."""


class Guarded(Protocol):
    """A worker with sessions of this coordinator."""

    @property
    def step_seconds(self) -> float:
        """What a step usually takes; 0 while unknown."""
        ...

    @property
    def waits_since(self) -> float | None:
        """Since when the session waits that has waited longest; None if none does."""
        ...

    @property
    def is_replaceable(self) -> bool:
        """Whether its sessions can do without it."""
        ...

    def abandon(self, reason: str) -> None:
        """It is to be left, by all sessions."""
        ...

    def abandon_idle(self, waits_since: float, reason: str) -> None:
        """It has nothing to do, though sessions have waited since then: these are to leave it."""
        ...


class Vigil:
    """Lasts while the worker has sessions of this coordinator, and begins anew with the next one."""

    def __init__(self, guarded: Guarded, ask: Callable[[], Awaitable[WorkerLoad]], silence_seconds: float) -> None:
        """`ask` fetches the worker's load. Raises OutriderError if it cannot."""
        self.liveness = Liveness(silence_seconds)
        self._guarded = guarded
        self._ask = ask
        self._is_over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """The worker has a session, of however many."""
        self._is_over.clear()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    def end(self) -> None:
        """The worker's last session has left."""
        self._is_over.set()

    async def stop(self) -> None:
        """Ends it at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def recovery(self, changed: asyncio.Event) -> bool:
        """Whether a worker that was left answers again, and gets on or has nothing to do, before something `changed`.

        Returns then, or when it has.
        """
        pause, progress = RECOVERY_SECONDS_MIN, None
        while not await comes(changed, pause):
            pause = min(2.0 * pause, RECOVERY_SECONDS_MAX)
            load = await self._answer(self.liveness.silence_max)
            if load is not None and (not load.is_busy or progress not in (None, load.progress)):
                return not changed.is_set()
            progress = None if load is None else load.progress
        return False

    async def _watch(self) -> None:
        guarded, liveness = self._guarded, self.liveness
        while not await comes(self._is_over, patience := liveness.patience(guarded.step_seconds)):
            since = guarded.waits_since
            if since is None or liveness.silence(since, time.monotonic()) < patience:
                continue
            load = await self._answer(max(liveness.silence_max - liveness.silence(since, time.monotonic()), patience))
            if load is not None:
                liveness.on_answer(load.progress, time.monotonic())
            since = guarded.waits_since
            if since is not None:
                self._judge(since, time.monotonic(), load)

    def _judge(self, since: float, now: float, load: WorkerLoad | None) -> None:
        guarded, liveness = self._guarded, self.liveness
        longest = liveness.silence_max if guarded.is_replaceable else max(ALONE_SECONDS, liveness.silence_max)
        if liveness.silence(since, now) >= longest:
            guarded.abandon(f"it has not answered for {longest:g} s")
        elif load is not None and liveness.standstill(since, now) >= longest:
            if load.is_busy:
                guarded.abandon(f"it has not got on for {longest:g} s")
            else:
                guarded.abandon_idle(now - longest, f"it has had nothing to do for {longest:g} s")

    async def _answer(self, seconds: float) -> WorkerLoad | None:
        """None if there is none by then, or the connection breaks: then the sessions' own streams tell."""
        try:
            async with asyncio.timeout(seconds):
                return await self._ask()
        except (TimeoutError, OutriderError):
            return None


async def comes(event: asyncio.Event, seconds: float) -> bool:
    """Waits for an event, for at most so long. Returns whether it has come."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
