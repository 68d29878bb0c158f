"""How requests are sent: by clients that wait for their answers, or by a clock that does not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

from bench.load.client import Recording
from bench.load.workload import ClosedWork, OpenWork, Request
from outrider.core.protocol.errors import SlotsExhaustedError

REFUSED_PAUSE_SECONDS = 1.0
"""How long a client rests that was refused: what the services ask for (`RetryInfo`)."""

Ask = Callable[[Request], Awaitable[Recording]]


async def closed_loop(ask: Ask, work: ClosedWork) -> list[Recording]:
    """As many clients as `work.lead_in` has entries, each asking again when it is answered. The load never falls before
    the last request that counts is answered; what is then under way is cancelled.

    Returns what came of `work.measured`, in its order.
    """
    recordings: dict[int, Recording] = {}
    waiting = iter(enumerate(work.measured))
    complete = asyncio.Event()

    async def client(first: Request | None) -> None:
        if first is not None:
            await _ask(ask, first)
        for index, request in waiting:
            recordings[index] = await _ask(ask, request)
            if len(recordings) == len(work.measured):
                complete.set()
        for request in itertools.cycle(work.fillers):
            await _ask(ask, request)

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client(first)) for first in work.lead_in]
        await complete.wait()
        for task in clients:
            task.cancel()
    return [recordings[index] for index in range(len(work.measured))]


async def open_loop(ask: Ask, work: OpenWork) -> list[Recording]:
    """Sends each request at its time, answered or not what came before. Returns what came of them, in their order."""
    started = time.monotonic()

    async def client(arrival: float, request: Request) -> Recording:
        await asyncio.sleep(started + arrival - time.monotonic())
        return await ask(request)

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(client(arrival, request))
            for arrival, request in zip(work.arrivals, work.measured, strict=True)
        ]
    return [task.result() for task in tasks]


async def lasting_loop(
    ask: Ask, requests: Iterable[Request], num_clients: int, seconds: float, on_answer: Callable[[Recording], None]
) -> None:
    """Clients that ask again when answered, one request of `requests` after another, for so many seconds; then each
    waits for its last answer. `on_answer` hears of all."""
    end = time.monotonic() + seconds
    waiting: Iterator[Request] = iter(requests)

    async def client() -> None:
        while time.monotonic() < end and (request := next(waiting, None)) is not None:
            on_answer(await _ask(ask, request))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())


@contextlib.asynccontextmanager
async def beside(ask: Ask, requests: Iterable[Request]) -> AsyncIterator[list[Recording]]:
    """One more client meanwhile, which asks one request after another. Yields what has come of them, as it comes; what
    is under way in the end is cancelled."""
    recordings: list[Recording] = []

    async def client() -> None:
        for request in requests:
            recordings.append(await _ask(ask, request))

    asking = asyncio.create_task(client())
    try:
        yield recordings
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _ask(ask: Ask, request: Request) -> Recording:
    """Asks, and rests after a refusal."""
    recording = await ask(request)
    if isinstance(recording.error, SlotsExhaustedError):
        await asyncio.sleep(REFUSED_PAUSE_SECONDS)
    return recording
