"""A service with health alone, to be started as a sub-process: `python -m tests.cli.stub_service HOST:PORT [refuse|deaf]`"""

from __future__ import annotations

import asyncio
import signal
import sys

from outrider.rpc.server import Server, Service

NAME = "outrider.v1.DraftService"


async def main(listen: str, manner: str) -> None:
    print("stub starts\rstub loads", flush=True)
    if manner == "refuse":
        print("stub cannot serve: no such model", file=sys.stderr)
        sys.exit(3)
    server = Server(Service(NAME, lambda servicer, server: None, object()))
    await server.start(listen)
    server.set_ready(True)
    if manner == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stub is deaf", flush=True)
        await asyncio.Event().wait()
    await server.run_until_signalled(1.0)
    print("stub drained")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
