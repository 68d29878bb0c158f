"""Servers for the tests of outrider/rpc."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from served import DRAFT_SERVICE, Serve, Served

from outrider.rpc.channels import open_channel
from outrider.rpc.server import Server, Service
from outrider.v1 import draft_pb2_grpc


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server for a drafter's servicer; stops it after the test."""
    async with AsyncExitStack() as stack:

        async def start(servicer: draft_pb2_grpc.DraftServiceServicer) -> Served:
            server = Server(Service(DRAFT_SERVICE, draft_pb2_grpc.add_DraftServiceServicer_to_server, servicer))
            port = await server.start("127.0.0.1:0")
            stack.push_async_callback(server.stop, None)
            channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{port}"))
            return Served(server, port, channel, draft_pb2_grpc.DraftServiceStub(channel))

        yield start
