"""What the tests of links share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from outrider.rpc.channels import open_channel
from outrider.rpc.server import Server, Service
from outrider.rpc.transport import PLAINTEXT
from outrider.rpc.worker_client import RESPONSE_BYTES_MAX
from outrider.v1 import draft_pb2_grpc, verify_pb2_grpc

from .linked import Handle, ScriptedWorker, Served, Standing


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handle], Awaitable[Served]]]:
    async with AsyncExitStack() as stack:

        async def start(handle: Handle) -> Served:
            worker = ScriptedWorker(handle)
            server = Server(
                Service("outrider.v1.DraftService", draft_pb2_grpc.add_DraftServiceServicer_to_server, worker),
                Service("outrider.v1.VerifyService", verify_pb2_grpc.add_VerifyServiceServicer_to_server, worker),
            )
            port = await server.start("127.0.0.1:0")
            stack.push_async_callback(server.stop, None)
            channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{port}", PLAINTEXT, RESPONSE_BYTES_MAX))
            return Served(worker, Standing(channel))

        yield start
