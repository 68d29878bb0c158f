"""Clients that cost: connections without a word, calls that are cancelled at once, answers that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from bench.load.memory import resident_bytes
from outrider.client import GenerationClient
from outrider.core.protocol.errors import OutriderError
from outrider.rpc.channels import open_channel
from outrider.v1 import generation_pb2, generation_pb2_grpc
from tests.e2e.answers import ask

from .services import Services

GOOD_SECONDS_MAX = 90.0
"""Longest that a good request is waited for while a crowd is there: those who do not read are left after 30 s."""

CANCELS_AT_A_TIME = 32

GROWN_BYTES_MAX = 64_000_000
"""Most that any process may grow by a crowd: 30 KB for each of a thousand connections, and what allocators keep."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """What one kind of crowd did to the service."""

    kind: str
    num_clients: int
    seconds: float
    good_request_seconds: float | None
    """How long a good request took while the crowd was there; None if it was not answered."""
    problem: str
    """Why it was not."""
    resident_before: dict[str, int]
    """Bytes of each process."""
    resident_with: dict[str, int]
    resident_after: dict[str, int]

    @property
    def grown(self) -> dict[str, int]:
        """Bytes that each process has grown, with the crowd or after it."""
        with_it, after = self.resident_with, self.resident_after
        return {name: max(with_it[name], after[name]) - before for name, before in self.resident_before.items()}

    @property
    def problems(self) -> list[str]:
        """Promises that were not kept."""
        found = [
            f"{self.kind}: {name} grew by {grown / 1e6:.0f} MB; {GROWN_BYTES_MAX / 1e6:.0f} MB are the most allowed"
            for name, grown in self.grown.items()
            if grown > GROWN_BYTES_MAX
        ]
        if self.good_request_seconds is None:
            found.append(f"{self.kind}: no good request was answered beside them: {self.problem}")
        return found


async def crowds(services: Services, scale: float, say: Callable[[str], None]) -> list[Crowd]:
    """Each kind in turn; `scale` 1 is 1 000 idle connections, 10 000 cancelled calls, 64 who do not read."""
    found: list[Crowd] = []
    for kind, come, number in (
        ("idle connections", idle, int(1000 * scale)),
        ("opened and cancelled", cancelled, int(10_000 * scale)),
        ("never read", unread, max(int(64 * scale), 1)),
    ):
        before = _resident(services)
        started = time.monotonic()
        good: float | None = None
        problem = ""
        try:
            async with come(services, number):
                good = await _good(services)
                present = _resident(services)
        except (OutriderError, OSError, TimeoutError, grpc.aio.AioRpcError) as error:
            problem, present = f"{type(error).__name__}: {error}", _resident(services)
        after = _resident(services)
        crowd = Crowd(kind, number, time.monotonic() - started, good, problem, before, present, after)
        answered = "no good request was answered" if good is None else f"a good request took {good:.1f} s"
        say(f"{number} {kind}: {answered}; the most that a process grew is {max(crowd.grown.values()) / 1e6:.1f} MB")
        found.append(crowd)
    return found


@asynccontextmanager
async def idle(services: Services, number: int) -> AsyncIterator[None]:
    """So many connections to both entries of the first coordinator, on which nobody says a word."""
    place = services.places["coordinator"][0]
    addresses = [place.address, place.http_address or place.address]
    sockets: list[socket.socket] = []
    try:
        for index in range(number):
            host, port = addresses[index % 2].rsplit(":", 1)
            sockets.append(socket.create_connection((host, int(port)), timeout=10.0))
            if index % 50 == 0:
                await asyncio.sleep(0)
        yield
    finally:
        for each in sockets:
            each.close()


@asynccontextmanager
async def cancelled(services: Services, number: int) -> AsyncIterator[None]:
    """So many calls, each cancelled as soon as it is made or has said its first words."""
    async with open_channel(services.addresses[0]) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)

        async def one(index: int) -> None:
            call = stub.Generate(_request(200))
            if index % 4 == 0:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call.read()
            else:
                await asyncio.sleep(0)
            call.cancel()

        for first in range(0, number, CANCELS_AT_A_TIME):
            await asyncio.gather(*(one(index) for index in range(first, min(first + CANCELS_AT_A_TIME, number))))
        yield


@asynccontextmanager
async def unread(services: Services, number: int) -> AsyncIterator[None]:
    """So many answers that nobody reads, half of them by HTTP on sockets with next to no buffer."""
    place = services.places["coordinator"][0]
    host, port = (place.http_address or "").rsplit(":", 1)
    body = json.dumps({"prompt": "import os\n", "max_tokens": 900, "stream": True, "ignore_eos": True, "logprobs": 5})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    sockets: list[socket.socket] = []
    try:
        async with open_channel(place.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            calls = [stub.Generate(_request(900, num_logprobs=20)) for _ in range(number // 2)]
            for _ in range(number - len(calls)):
                each = socket.socket()
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                each.settimeout(10.0)
                each.connect((host, int(port)))
                each.sendall(f"{head}\r\n\r\n{body}".encode())
                sockets.append(each)
            await asyncio.sleep(1.0)
            yield
            for call in calls:
                call.cancel()
    finally:
        for each in sockets:
            each.close()


def _request(max_tokens: int, **fields: Any) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(text="import os\n", max_tokens=max_tokens, ignore_eos=True, **fields)


async def _good(services: Services) -> float:
    """Seconds that a good request takes at the coordinator where the crowd is. Raises what goes wrong with it."""
    started = time.monotonic()
    async with asyncio.timeout(GOOD_SECONDS_MAX), GenerationClient(services.addresses[0]) as client:
        while True:
            try:
                await ask(client, "import os\n", max_tokens=16, ignore_eos=True)
                return time.monotonic() - started
            except OutriderError:  # no room yet
                await asyncio.sleep(1.0)


def _resident(services: Services) -> dict[str, int]:
    return {place.name: resident_bytes(place.child.process_id) for place in services.all}
