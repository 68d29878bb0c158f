"""The proxy does what its script says, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from .proxy import Proxy, Script

CONTENT = bytes(range(256)) * 64


@asynccontextmanager
async def echoed(seed: int = 0) -> AsyncIterator[tuple[Proxy, Callable[[], Awaitable[asyncio.StreamReader]]]]:
    """A proxy before a server that echoes, and what connects, sends CONTENT and returns the way back."""
    serving: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while chunk := await reader.read(1000):
                writer.write(chunk)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def sent() -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(*proxy.address.split(":"))
        writers.append(writer)
        writer.write(CONTENT)
        return reader

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", seed) as proxy:
        yield proxy, sent
        for writer in writers:
            writer.transport.abort()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def test_without_a_script_everything_passes() -> None:
    async with echoed() as (_, sent):
        assert await (await sent()).readexactly(len(CONTENT)) == CONTENT


async def test_what_is_late_and_slow_comes_whole_and_in_order() -> None:
    async with echoed() as (proxy, sent):
        proxy.script = Script(delay_seconds=0.001, jitter_seconds=0.01, bytes_per_second=2e6)
        assert await (await sent()).readexactly(len(CONTENT)) == CONTENT


async def test_a_black_hole_holds_everything_until_it_heals() -> None:
    async with echoed() as (proxy, sent):
        proxy.black_hole()
        reading = asyncio.create_task((await sent()).readexactly(len(CONTENT)))
        assert not (await asyncio.wait({reading}, timeout=0.05))[0]
        proxy.heal()
        assert await reading == CONTENT


async def test_a_reset_is_a_reset() -> None:
    async with echoed() as (proxy, sent):
        reader = await sent()
        await reader.readexactly(len(CONTENT))
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)


async def test_half_of_a_connection_is_shut() -> None:
    async with echoed() as (proxy, sent):
        reader = await sent()
        await reader.readexactly(len(CONTENT))
        proxy.half_close()
        assert await reader.read() == b""


async def test_nothing_passes_after_a_stall() -> None:
    async with echoed() as (proxy, sent):
        proxy.script = Script(stall_after=1000)
        reader = await sent()
        assert await reader.readexactly(1000) == CONTENT[:1000]
        reading = asyncio.create_task(reader.read(1))
        assert not (await asyncio.wait({reading}, timeout=0.05))[0]
        reading.cancel()


async def test_it_counts_the_bits_that_it_turns_over() -> None:
    async with echoed() as (proxy, sent):
        proxy.script = Script(flip_rate=0.5)
        content = await (await sent()).readexactly(len(CONTENT))
        num_turned = sum((a ^ b).bit_count() for a, b in zip(CONTENT, content, strict=True))
        assert 0 < num_turned <= proxy.num_flips
