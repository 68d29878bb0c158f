"""A service with health alone, started by `python -m tests.cli.stub_service HOST:PORT obey|refuse|deaf|compile`."""

from __future__ import annotations

import asyncio
import signal
import sys

from outrider.rpc.server import Server, Service
from outrider.v1 import draft_pb2_grpc

NAME = "outrider.v1.DraftService"


async def main(listen: str, manner: str) -> None:
    print("stub starts\rstub loads", flush=True)
    if manner == "refuse":
        print("stub cannot serve: no such model", file=sys.stderr)
        sys.exit(3)
    servicer = draft_pb2_grpc.DraftServiceServicer()
    server = Server(Service(NAME, draft_pb2_grpc.add_DraftServiceServicer_to_server, servicer))
    await server.start(listen)
    if manner == "compile":
        compiler = await asyncio.create_subprocess_exec("sleep", "600")
        print(f"stub has started {compiler.pid}", flush=True)
    server.set_ready(True)
    if manner == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stub is deaf", flush=True)
        await asyncio.Event().wait()
    await server.run_until_signalled(1.0)
    print("stub drained")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
