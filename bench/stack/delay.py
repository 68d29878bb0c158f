"""A TCP relay that holds every byte back for a set time: a network between two services of one machine.

`python -m bench.stack.delay MILLISECONDS HOST:PORT ...` is one for each address, until its standard input ends; its
first line says, as JSON, where each listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import sys
from collections.abc import AsyncIterator, Sequence

from outrider.machine.tether import untethered

HOST = "127.0.0.1"

CHUNK_BYTES = 64 * 1024


class DelayLine:
    """Forwards connections to `upstream` with `seconds` of delay each way, which may be changed at any time."""

    def __init__(self, upstream: str) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._connections: set[asyncio.Task[None]] = set()
        self.seconds = 0.0

    @contextlib.asynccontextmanager
    async def listening(self, host: str) -> AsyncIterator[str]:
        """The address to connect to in the place of `upstream`."""
        server = await asyncio.start_server(self._accept, host, 0)
        try:
            yield f"{host}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()  # nobody is there, and that is what the other end should see
            return
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        try:
            while chunk := await source.read(CHUNK_BYTES):
                due = max(loop.time() + self.seconds, due)  # what was sent first arrives first
                loop.call_at(due, sink.write, chunk)
            loop.call_at(max(loop.time() + self.seconds, due), sink.close)
        except OSError:
            sink.close()


@contextlib.asynccontextmanager
async def delayed(upstreams: Sequence[str], milliseconds: float) -> AsyncIterator[dict[str, str]]:
    """By each address of `upstreams` the one in its place, where a message takes `milliseconds` more each way.

    The relays are in a process of their own, lest they wait for this one's interpreter.
    """
    process = await asyncio.create_subprocess_exec(
        *untethered("bench.stack.delay", str(milliseconds), *upstreams),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield dict(zip(upstreams, json.loads(await process.stdout.readline()), strict=True))
    finally:
        process.stdin.close()
        await process.wait()


async def _relay(milliseconds: float, upstreams: Sequence[str]) -> None:
    async with contextlib.AsyncExitStack() as leaving:
        addresses: list[str] = []
        for upstream in upstreams:
            line = DelayLine(upstream)
            line.seconds = milliseconds / 1000.0
            addresses.append(await leaving.enter_async_context(line.listening(HOST)))
        print(json.dumps(addresses), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """Relays until standard input ends. Timers of `select` are exact; those of `epoll` count whole milliseconds."""
    milliseconds, *upstreams = sys.argv[1:]
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_relay(float(milliseconds), upstreams))


if __name__ == "__main__":
    main()
