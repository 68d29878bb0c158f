"""One client has so many requests at a time by HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from coordinator.openai.client_requests import ClientRequests
from coordinator.openai.connection import Json

NUM_MAX = 2


class Held:
    """An application that answers when it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.may_answer.wait()
        await Json({})(scope, receive, send)


async def test_those_beyond_are_refused_and_others_and_probes_are_not() -> None:
    held = Held()
    app = ClientRequests(held, NUM_MAX)

    async def ask(host: str, path: bytes = b"/v1/completions") -> tuple[int, bytes]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope: dict[str, Any] = {"type": "http", "raw_path": path, "client": (host, 1)}
        await app(scope, asyncio.Event().wait, send)  # pyright: ignore
        return sent[0]["status"], sent[1]["body"]

    running = [asyncio.create_task(ask("10.0.0.1")) for _ in range(NUM_MAX)]
    await asyncio.sleep(0)
    status, body = await ask("10.0.0.1")
    assert status == 429
    assert b"2 requests of this client are running" in body
    running += [asyncio.create_task(ask("10.0.0.2")), asyncio.create_task(ask("10.0.0.1", b"/healthz"))]
    await asyncio.sleep(0)
    held.may_answer.set()
    assert [status for status, _ in await asyncio.gather(*running)] == [200] * 4
    assert (await ask("10.0.0.1"))[0] == 200
