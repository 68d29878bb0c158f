"""Clients that do not read, by both doors: what runs for them ends, and others are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from starlette.types import Message, Receive, Scope, Send

from coordinator.openai.connection import EventStream, Json
from coordinator.openai.unread_responses import UnreadResponses
from coordinator.service import GenerationService
from coordinator.servicer import GenerationServicer
from outrider.core.coordinate.events import Event, Started, Tokens
from outrider.rpc.server import Server, Service
from outrider.v1 import generation_pb2, generation_pb2_grpc
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server

NUM_SLOW = 64
UNREAD_SECONDS = 0.3

SMALL_WINDOWS = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.use_local_subchannel_pool", 1),
)
"""So that little is under way to a client that does not read."""


class Endless:
    """A service whose answers have no end."""

    def __init__(self) -> None:
        self.num_begun = self.num_running = 0
        self.changed = asyncio.Condition()

    async def generate(self, *_: object, **__: object) -> AsyncGenerator[Event]:
        self.num_begun += 1
        self.num_running += 1
        try:
            yield Started("r", (1,), 0, "")
            while True:
                yield Tokens(1, "x" * 20_000, (), False, 0)
        finally:
            self.num_running -= 1
            async with self.changed:
                self.changed.notify_all()

    async def until_idle(self) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: not self.num_running)


@pytest.fixture
async def endless() -> AsyncIterator[tuple[Endless, str]]:
    service = Endless()
    servicer = GenerationServicer(
        cast("GenerationService", service), unread_seconds=UNREAD_SECONDS, max_requests_per_client=NUM_SLOW
    )
    server = Server(Service("outrider.v1.GenerationService", add_GenerationServiceServicer_to_server, servicer))
    port = await server.start("127.0.0.1:0")
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


def generate(channel: grpc.aio.Channel) -> Any:
    return generation_pb2_grpc.GenerationServiceStub(channel).Generate(generation_pb2.GenerateRequest(text="a"))


async def rest(call: Any) -> AsyncGenerator[Any]:
    """What comes by `read` until the end."""
    while (message := await call.read()) is not grpc.aio.EOF:  # pyright: ignore
        yield message


async def test_clients_that_never_read_are_given_up_and_hear_why_when_they_do(endless: tuple[Endless, str]) -> None:
    service, address = endless
    async with (
        grpc.aio.insecure_channel(address, options=SMALL_WINDOWS) as slow,
        grpc.aio.insecure_channel(address, options=SMALL_WINDOWS) as other,
    ):
        calls = [generate(slow) for _ in range(NUM_SLOW)]
        for call in calls:
            await call.read()
        assert service.num_begun == NUM_SLOW
        await service.until_idle()
        served = generate(other)
        for _ in range(9):
            await served.read()
        served.cancel()
        with pytest.raises(grpc.aio.AioRpcError, match=f"taken nothing for {UNREAD_SECONDS:g} s") as ended:
            _ = [message async for message in rest(calls[0])]
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


async def test_a_client_has_so_many_requests_at_a_time(endless: tuple[Endless, str]) -> None:
    async with grpc.aio.insecure_channel(endless[1]) as channel:
        calls = [generate(channel) for _ in range(NUM_SLOW + 1)]
        with pytest.raises(grpc.aio.AioRpcError, match=f"{NUM_SLOW} requests of this client are running"):
            await asyncio.gather(*(read_on(call) for call in calls))
        for call in calls:
            call.cancel()


async def read_on(call: Any) -> None:
    """Reads for as long as anything comes."""
    async for _ in rest(call):
        pass


class Page:
    """An application that streams without end, or answers once; it notes that it has ended."""

    def __init__(self, *, streams: bool) -> None:
        self.has_ended = False
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = EventStream(self._events(), dict) if self._streams else Json({"a": 1})
            await answer(scope, receive, send)
        finally:
            self.has_ended = self.has_ended or not self._streams

    async def _events(self) -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            self.has_ended = True


@pytest.mark.parametrize("streams", [True, False])
async def test_an_http_client_that_takes_nothing_is_given_up(streams: bool) -> None:
    async def nothing_more() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    num_sent = 0

    async def stall(message: Message) -> None:
        nonlocal num_sent
        num_sent += 1
        if num_sent > 1:
            await asyncio.Event().wait()

    page = Page(streams=streams)
    await UnreadResponses(page, 0.05)({"type": "http"}, nothing_more, stall)
    assert page.has_ended
    assert num_sent == 2
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_an_http_request_that_is_cancelled_is_cancelled() -> None:
    async def wait(*_: object) -> Any:
        await asyncio.Event().wait()

    answering = asyncio.ensure_future(UnreadResponses(Page(streams=True), 60.0)({"type": "http"}, wait, wait))
    await asyncio.wait({answering}, timeout=0.01)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
