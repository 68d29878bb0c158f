"""The relay delivers every byte, in order, not before its time."""

from __future__ import annotations

import asyncio

from bench.stack.delay import DelayLine, delayed

DELAY_SECONDS = 0.05


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1000):
        writer.write(chunk)
    writer.close()


async def test_relays_of_another_process_stand_in_the_place_of_their_upstreams() -> None:
    servers = [await asyncio.start_server(echo, "127.0.0.1", 0) for _ in range(2)]
    upstreams = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    async with servers[0], servers[1], delayed(upstreams, 1000.0 * DELAY_SECONDS) as addresses:
        assert list(addresses) == upstreams
        assert not {*addresses.values()} & {*upstreams}
        for address in addresses.values():
            host, port = address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            started = asyncio.get_running_loop().time()
            writer.write(b"there and back")
            assert await reader.readexactly(14) == b"there and back"
            assert asyncio.get_running_loop().time() - started >= 2 * DELAY_SECONDS
            writer.close()


async def test_bytes_arrive_in_order_and_late() -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    line = DelayLine(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    line.seconds = DELAY_SECONDS
    async with server, line.listening("127.0.0.1") as address:
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        sent = bytes(range(256)) * 1000
        started = loop.time()
        writer.write(sent)
        received = await reader.readexactly(len(sent))
        assert loop.time() - started >= 2 * DELAY_SECONDS  # a lower bound that no slow machine can break
        assert received == sent
        line.seconds = 0.0
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
