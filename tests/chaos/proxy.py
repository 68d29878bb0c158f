"""A TCP proxy that does to a connection what networks do: late, slow, silent, cut, half shut, damaged. Seeded."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Self

CHUNK_BYTES = 4096
"""Most bytes that pass at once."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER of no time at all: closing sends a reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What happens to the bytes of either direction."""

    delay_seconds: float = 0.0
    """Least time that each chunk is under way."""
    jitter_seconds: float = 0.0
    """Most time that chance adds to it. Order stays, as TCP has it."""
    bytes_per_second: float = math.inf
    flip_rate: float = 0.0
    """How likely a chunk is to arrive with one bit turned over."""
    stall_after: int | None = None
    """Bytes of a direction after which nothing more of it passes, though the connection stays."""


CLEAR = Script()


class Proxy:
    """Stands before one address. `script` may be changed at any time, and holds for connections that there are, too."""

    def __init__(self, target: str, seed: int = 0) -> None:
        """`target` is `host:port`; it is connected to anew for each connection."""
        self.script = CLEAR
        self.num_flips = 0
        self._target = target
        self._rng = Random(seed)
        self._passes = asyncio.Event()
        self._passes.set()
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def black_hole(self) -> None:
        """From now on nothing passes, and nobody is told. What comes meanwhile is held."""
        self._passes.clear()

    def heal(self) -> None:
        """Bytes pass again, those that were held first, and by no script."""
        self.script = CLEAR
        self._passes.set()

    def reset(self) -> None:
        """Cuts every connection at both ends, with a reset."""
        for both in self._connections.values():
            for writer in both:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()

    def half_close(self) -> None:
        """Tells the side that connected that no more will come from the other, which hears nothing of it."""
        for near, _ in self._connections.values():
            if near.can_write_eof() and not near.is_closing():
                near.write_eof()

    async def _serve(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._join(task, near_reader, near_writer)
        except asyncio.CancelledError:
            pass  # the proxy ends; the task would be complained of if it ended as cancelled
        finally:
            self._serving.discard(task)
            near_writer.transport.abort()

    async def _join(
        self, task: asyncio.Task[None], near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter
    ) -> None:
        """Connects to the target, and passes bytes on until either side is gone."""
        await self._passes.wait()
        host, port = self._target.rsplit(":", 1)
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        self._connections[task] = (near_writer, far_writer)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(near_reader, far_writer))
                pumps.create_task(self._pump(far_reader, near_writer))
        except* (OSError, RuntimeError):  # one end is gone, or shut by `half_close`: so is the other
            pass
        finally:
            del self._connections[task]
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        num_bytes, free_at = 0, 0.0
        while chunk := await reader.read(CHUNK_BYTES):
            script = self.script
            due = clock() + script.delay_seconds + script.jitter_seconds * self._rng.random()
            free_at = max(free_at, due) + len(chunk) / script.bytes_per_second
            if free_at > clock():
                await asyncio.sleep(free_at - clock())
            if script.stall_after is not None and num_bytes + len(chunk) > script.stall_after:
                writer.write(chunk[: max(script.stall_after - num_bytes, 0)])
                await asyncio.get_running_loop().create_future()
            await self._passes.wait()
            num_bytes += len(chunk)
            writer.write(self._damaged(chunk) if self._rng.random() < script.flip_rate else chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def _damaged(self, chunk: bytes) -> bytes:
        damaged = bytearray(chunk)
        damaged[self._rng.randrange(len(damaged))] ^= 1 << self._rng.randrange(8)
        self.num_flips += 1
        return bytes(damaged)
