"""How busy a worker is, as it reports itself (`GetLoad`)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import WorkerLoad
from outrider.rpc.channels import open_channel
from outrider.rpc.worker_client import WorkerClient


class LoadSpan(NamedTuple):
    """What a worker reported, and for how long that held."""

    seconds: float
    load: WorkerLoad

    @property
    def kv_use(self) -> float:
        """Share of the room for keys and values that sessions hold."""
        return 1.0 - self.load.num_free_kv_tokens / self.load.num_kv_tokens if self.load.num_kv_tokens else 0.0


async def until_idle(address: str, service: str) -> WorkerLoad:
    """Returns when the worker has no session left, with what it reports then. Raises OutriderError."""
    async with open_channel(address) as channel:
        async for load in WorkerClient(channel, service).watch_load():
            if not load.num_sessions and not load.num_queued:
                return load
    raise WorkerUnavailableError(f"the worker at {address} has stopped; see its log")


class LoadLog:
    """Everything that one worker reports."""

    def __init__(self) -> None:
        self._reports: list[tuple[float, WorkerLoad]] = []

    @contextlib.asynccontextmanager
    async def following(self, address: str, service: str) -> AsyncIterator[None]:
        """Listens to the worker meanwhile. On leaving, raises OutriderError if the worker was lost."""

        async def listen() -> None:
            async with open_channel(address) as channel:
                async for load in WorkerClient(channel, service).watch_load():
                    self._reports.append((time.monotonic(), load))

        listening = asyncio.create_task(listen())
        try:
            yield
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    def between(self, start: float, end: float) -> list[LoadSpan]:
        """What was reported between two moments of the monotonic clock, and the report in force at the first one."""
        spans: list[LoadSpan] = []
        for index, (came, load) in enumerate(self._reports):
            last = self._reports[index + 1][0] if index + 1 < len(self._reports) else end
            seconds = min(last, end) - max(came, start)
            if seconds > 0.0:
                spans.append(LoadSpan(seconds, load))
        return spans
