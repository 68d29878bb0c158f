"""Channels notice a peer that has stopped answering."""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc
import grpc.aio
import pytest

from outrider.rpc.channels import CHANNEL_OPTIONS, KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS
from outrider.v1 import draft_pb2_grpc
from outrider.v1.draft_pb2 import DraftCommands

ECHO = """
import asyncio
import grpc.aio
from outrider.rpc.channels import SERVER_OPTIONS
from outrider.v1 import draft_pb2, draft_pb2_grpc

class Echo(draft_pb2_grpc.DraftServiceServicer):
    async def Draft(self, request_iterator, context):
        while await context.read() is not grpc.aio.EOF:
            await context.write(draft_pb2.DraftEvents())

async def main():
    server = grpc.aio.server(options=SERVER_OPTIONS)
    draft_pb2_grpc.add_DraftServiceServicer_to_server(Echo(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""

QUICK_MS = 1_000
"""In the place of the times that production waits."""


async def test_a_peer_that_is_stuck_counts_as_lost() -> None:
    """Though its kernel goes on confirming what is sent to it. gRPC's own default would be a minute."""
    options = [
        (name, QUICK_MS if value in (KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS) else value) for name, value in CHANNEL_OPTIONS
    ]
    peer = await asyncio.create_subprocess_exec(sys.executable, "-c", ECHO, stdout=asyncio.subprocess.PIPE)
    try:
        assert peer.stdout is not None
        port = int(await peer.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            call = draft_pb2_grpc.DraftServiceStub(channel).Draft()
            await call.write(DraftCommands())
            await call.read()
            peer.send_signal(signal.SIGSTOP)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call.read(), timeout=30.0)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        peer.kill()
        await peer.wait()
