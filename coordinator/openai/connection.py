"""Work that a client waits for: it ends when the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi.responses import Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from coordinator.openai.api_error import api_error
from outrider.core.coordinate.events import Started

T = TypeVar("T")

KEEP_ALIVE_COMMENT_SECONDS = 5.0
"""Longest silence of a stream of events: a comment, which clients pass over, tells proxies and them that it lives."""

COMMENT = b":\n\n"
"""No event: clients pass it over."""

DONE = b"data: [DONE]\n\n"
"""Ends a stream of events as OpenAI's clients expect it."""


def data(value: Mapping[str, Any], event_id: bytes = b"") -> bytes:
    """A server-sent event without a name, with an id if that is not empty."""
    return b"%bdata: %b\n\n" % (b"id: %b\n" % event_id if event_id else b"", to_json(value))


def named(value: Mapping[str, Any], event_id: bytes) -> bytes:
    """A server-sent event that is named by its `type`."""
    return b"event: %b\n%b" % (value["type"].encode(), data(value, event_id))


def first_headers(started: Started) -> dict[str, str]:
    """Headers that are known as soon as a request is accepted."""
    return {
        "x-request-id": started.request_id,
        "x-outrider-batch-invariant": "true" if started.batch_invariant else "false",
        **({"x-outrider-kv-cache-dtype": started.kv_cache_dtype} if started.kv_cache_dtype not in ("", "auto") else {}),
    }


class Json(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return to_json(content)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Cancels it and raises ClientDisconnect when the client leaves first.

    The request's body must have been read.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_until_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)
    return working.result()


async def _until_left(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


class _Speaking:
    """The body of a stream, which is never silent for long once it has begun."""

    def __init__(self, send: Send) -> None:
        self.keeping: asyncio.Task[None] | None = None
        """Set once the stream has begun."""
        self._send = send
        self._last = 0.0
        self._is_over = asyncio.Event()

    def begin(self) -> None:
        """The headers are sent."""
        self.keeping = asyncio.create_task(self._keep_alive())

    async def say(self, event: bytes) -> None:
        """Sends an event."""
        self._last = time.monotonic()
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self) -> None:
        """Says nothing more by itself."""
        self._is_over.set()
        if self.keeping is not None:
            self.keeping.cancel()
            await asyncio.gather(self.keeping, return_exceptions=True)

    async def _keep_alive(self) -> None:
        while not self._is_over.is_set():
            silent = time.monotonic() - self._last
            if silent >= KEEP_ALIVE_COMMENT_SECONDS:
                await self.say(COMMENT)
                silent = 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_ALIVE_COMMENT_SECONDS - silent):
                    await self._is_over.wait()


class EventStream(Response):
    """Server-sent events. The status waits for the first one: what fails before it has a status of its own.

    What fails later is told by an event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], headers: Callable[[], Mapping[str, str]]) -> None:
        """The `headers` are asked for after the first event."""
        super().__init__(None)
        self._events = events
        self._first_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events. Raises ApiError as long as nothing has been sent."""
        with suppress(ClientDisconnect):
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        speaking = _Speaking(send)
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    if speaking.keeping is None:
                        await self._begin(send)
                        speaking.begin()
                    await speaking.say(event)
            except Exception as error:
                told = api_error(error, {})
                if speaking.keeping is None:
                    raise told from error
                await speaking.say(data(told.body))
            finally:
                await speaking.end()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        # A proxy that gathers events before it passes them on would undo the streaming.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **self._first_headers()})
        del self.headers["content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
