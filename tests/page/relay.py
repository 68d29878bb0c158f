"""A way to the server that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Passes bytes on in both directions."""

    def __init__(self, port: int) -> None:
        """`port` is the server's."""
        self.num_cuts = 0
        self._port = port
        self._bytes_left: int | None = None
        self._cut = asyncio.Event()

    def hold_after(self, num_bytes: int) -> None:
        """The connection that brings the browser so many more bytes brings no more until it is cut."""
        self._bytes_left = num_bytes

    def cut(self) -> None:
        """The connection that is held, or will be, is broken off."""
        self._cut.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        asking = asyncio.create_task(self._pass(reader, server_writer))
        try:
            await self._pass(server_reader, writer, cuts=True)
        finally:
            asking.cancel()
            writer.transport.abort()
            server_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cuts: bool = False) -> None:
        while data := await reader.read(1024):
            if cuts and self._bytes_left is not None:
                self._bytes_left -= len(data)
                if self._bytes_left < 0:
                    self._bytes_left = None
                    await self._cut.wait()
                    self.num_cuts += 1
                    return
            writer.write(data)


@asynccontextmanager
async def relay_to(port: int) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to the server at `port`, and its URL."""
    relay = Relay(port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    yield relay, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
