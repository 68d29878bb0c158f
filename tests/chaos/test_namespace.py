"""A link into another network namespace passes bytes, holds them while it is cut, and passes them again."""

from __future__ import annotations

import asyncio
import sys

import pytest

from .namespace import NoNamespaceError, namespace

ECHO = "import socket as s; l = s.create_server(('', 7)); c, _ = l.accept()\nwhile b := c.recv(9): c.sendall(b)"


async def test_what_is_sent_into_a_cut_arrives_when_it_heals() -> None:
    try:
        async with namespace() as far:
            process = await asyncio.create_subprocess_exec("ip", "netns", "exec", far.name, sys.executable, "-c", ECHO)
            try:
                reader, writer = await _connected(far.address)
                writer.write(b"1")
                assert await reader.read(1) == b"1"
                await far.cut()
                writer.write(b"2")
                reading = asyncio.create_task(reader.read(1))
                assert not (await asyncio.wait({reading}, timeout=0.3))[0]
                await far.join()
                assert await reading == b"2"
                writer.close()
            finally:
                process.kill()
                await process.wait()
    except NoNamespaceError as error:
        pytest.skip(f"no network namespaces here: {error}")


async def _connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection(address, 7)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
