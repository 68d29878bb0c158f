"""A verify service played by a servicer of a test, behind a real server, and the client that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from outrider.rpc.channels import open_channel
from outrider.rpc.server import Server, Service
from outrider.rpc.worker_client import VERIFY_SERVICE, WorkerClient
from outrider.v1 import verify_pb2_grpc


@asynccontextmanager
async def client_of(servicer: verify_pb2_grpc.VerifyServiceServicer) -> AsyncIterator[WorkerClient]:
    """Asks `servicer`, which serves meanwhile and is ready."""
    server = Server(Service(VERIFY_SERVICE, verify_pb2_grpc.add_VerifyServiceServicer_to_server, servicer))
    port = await server.start("127.0.0.1:0")
    server.set_ready(True)
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield WorkerClient(channel, VERIFY_SERVICE)
    await server.stop(None)
