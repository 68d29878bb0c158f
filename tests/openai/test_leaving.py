"""Clients that leave, and servers that stop."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI

from coordinator.openai.app import make_app
from outrider.http.server import HttpServer
from outrider.rpc.listening import ListenError
from tests.openai.conftest import Served, until_idle

pytestmark = pytest.mark.asyncio(loop_scope="package")

LONG = {"model": "target", "prompt": "a", "max_tokens": 900, "ignore_eos": True, "temperature": 0}


async def posted(served: Served, **changes: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A real connection on which a long completion has been asked for."""
    body = json.dumps({**LONG, **changes}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.http.port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    return reader, writer


async def test_a_connection_that_closes_in_mid_stream_frees_both_slots(served: Served) -> None:
    reader, writer = await posted(served, stream=True, n=2)
    while not (await reader.readline()).startswith(b"data:"):
        pass
    assert served.stack.service.server_info().num_running == 2
    assert served.verify.loaded.engine.num_free_slots < served.verify.loaded.engine.max_sessions
    writer.close()
    await until_idle(served)


async def test_so_does_one_that_closes_before_its_answer(served: Served) -> None:
    _, writer = await posted(served)
    while not (await served.stack.client.server_info()).num_running:
        pass
    writer.transport.abort()
    await until_idle(served)


async def test_a_stop_lets_streams_end_and_takes_no_more(served: Served) -> None:
    http = HttpServer(make_app(served.stack.service), "127.0.0.1:0")
    await http.open()
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{http.port}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="target", prompt="a", max_tokens=100, temperature=0, stream=True)
        await anext(stream)
        stopping = asyncio.create_task(http.stop(20))
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason is not None
        await stopping
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()


async def test_a_stop_without_grace_cancels_what_runs(served: Served) -> None:
    http = HttpServer(make_app(served.stack.service), "127.0.0.1:0")
    await http.open()
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{http.port}/v1", api_key="none", max_retries=0) as client:
        asked = {name: value for name, value in LONG.items() if name != "ignore_eos"}
        stream = await client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
        await anext(stream)
        graceful = asyncio.create_task(http.stop(60))
        await http.stop(None)
        await graceful
        with pytest.raises(openai.APIConnectionError):
            _ = [chunk async for chunk in stream]
    await until_idle(served)


async def test_a_port_in_use_is_said_in_words(served: Served) -> None:
    taken = HttpServer(make_app(served.stack.service), f"127.0.0.1:{served.http.port}")
    with pytest.raises(ListenError, match=f"port {served.http.port} of .* is in use.* --http"):
        await taken.open()
    with pytest.raises(ListenError, match="--http HOST:PORT"):
        await HttpServer(make_app(served.stack.service), "8080").open()
