"""A stream of events by itself: it is never silent for long, and says nothing behind its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from coordinator.openai import connection
from coordinator.openai.connection import COMMENT, EventStream


async def test_a_silent_stream_is_kept_alive_by_comments_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEP_ALIVE_COMMENT_SECONDS", 0.01)
    sent: list[bytes] = []
    enough = asyncio.Event()

    async def events() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        await enough.wait()
        yield b"data: 2\n\n"

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])
            if sent.count(COMMENT) == 2:
                enough.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async with asyncio.timeout(30):
        await EventStream(events(), lambda: {})({"type": "http"}, receive, send)
    assert sent[0] == b"data: 1\n\n"
    assert sent.count(COMMENT) >= 2
    assert [body for body in sent if body != COMMENT] == [b"data: 1\n\n", b"data: 2\n\n", b""]
    assert sent[-1] == b""
    await asyncio.sleep(0.05)
    assert sent[-1] == b"", "nothing is said behind the end"
