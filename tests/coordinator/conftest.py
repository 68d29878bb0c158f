"""What the tests of links share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from outrider.rpc.server import Server, Service
from outrider.rpc.transport import PLAINTEXT
from outrider.rpc.worker_client import VERIFY_SERVICE, WorkerClient
from outrider.v1 import draft_pb2_grpc, verify_pb2_grpc

from .linked import Handle, ScriptedWorker, Serve, Served, Standing


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(handle: Handle, service: str = VERIFY_SERVICE) -> Served:
            worker = ScriptedWorker(handle)
            server = Server(
                Service("outrider.v1.DraftService", draft_pb2_grpc.add_DraftServiceServicer_to_server, worker),
                Service("outrider.v1.VerifyService", verify_pb2_grpc.add_VerifyServiceServicer_to_server, worker),
            )
            port = await server.start("127.0.0.1:0")
            stack.push_async_callback(server.stop, None)
            client = WorkerClient.connect(f"127.0.0.1:{port}", service, PLAINTEXT)
            stack.push_async_callback(client.close)
            return Served(worker, Standing(client))

        yield start
