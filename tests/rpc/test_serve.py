"""Serving: a server and the work beside it begin and end together."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from served import DRAFT_SERVICE

from outrider.core.protocol.errors import OutriderError
from outrider.rpc.channels import open_channel
from outrider.rpc.serve import serve
from outrider.rpc.server import Service, SetReady
from outrider.rpc.status import rpc_errors
from outrider.rpc.streams import EOF
from outrider.rpc.transport import PLAINTEXT
from outrider.v1 import draft_pb2_grpc
from outrider.v1.draft_pb2 import DraftCommands, DraftEvent, DraftEvents, DraftOpened

ROOT = Path(__file__).parents[2]


class Config(NamedTuple):
    listen: str
    drain_seconds: float = 60.0


class Echo(draft_pb2_grpc.DraftServiceServicer):
    @rpc_errors
    async def Draft(self, request_iterator: object, context: Any) -> None:
        while await context.read() is not EOF:
            await context.write(DraftEvents(events=[DraftEvent(opened=DraftOpened())]))


def service(**beside: Any) -> Service:
    return Service(DRAFT_SERVICE, draft_pb2_grpc.add_DraftServiceServicer_to_server, Echo(), **beside)


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return f"127.0.0.1:{reserved.getsockname()[1]}"


async def until_serving(channel: grpc.aio.Channel) -> None:
    request = HealthCheckRequest(service=DRAFT_SERVICE)
    async for response in health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True):
        if response.status == HealthCheckResponse.SERVING:
            return


async def test_work_goes_on_until_the_last_stream_has_drained(address: str) -> None:
    events: list[str] = []

    async def work(set_ready: SetReady) -> None:
        set_ready(True)
        try:
            await asyncio.Event().wait()
        finally:
            events.append("work ends")

    serving = asyncio.create_task(
        serve(Config(address), service(work=work, on_stop=lambda: events.append("stop begins")), PLAINTEXT)
    )
    async with open_channel(address) as channel:
        await until_serving(channel)
        call = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        await call.write(DraftCommands())
        await call.read()
        os.kill(os.getpid(), signal.SIGTERM)
        await call.write(DraftCommands())
        await call.read()
        while "stop begins" not in events:
            await call.write(DraftCommands())
            await call.read()
        assert events == ["stop begins"]
        await call.done_writing()
        assert await call.read() is EOF
        await serving
    assert events == ["stop begins", "work ends"]


async def test_a_service_without_work_is_ready_at_once(address: str) -> None:
    serving = asyncio.create_task(serve(Config(address), service(), PLAINTEXT))
    async with open_channel(address) as channel:
        await until_serving(channel)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_a_signal_ends_work_that_is_not_ready_yet(address: str) -> None:
    loading = asyncio.Event()

    async def work(set_ready: SetReady) -> None:
        loading.set()
        await asyncio.Event().wait()

    serving = asyncio.create_task(serve(Config(address), service(work=work), PLAINTEXT))
    await loading.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_work_that_fails_stops_the_server_and_is_raised(address: str) -> None:
    fails = asyncio.Event()

    async def work(set_ready: SetReady) -> None:
        set_ready(True)
        await fails.wait()
        raise OutriderError("the device is gone")

    serving = asyncio.create_task(serve(Config(address), service(work=work), PLAINTEXT))
    async with open_channel(address) as channel:
        await until_serving(channel)
        call = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        await call.write(DraftCommands())
        await call.read()
        fails.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(OutriderError, match="the device is gone"):
        await serving


def test_ports_and_channels_are_made_in_one_place() -> None:
    makers = ("insecure_channel(", "secure_channel(", "add_insecure_port(", "add_secure_port(")
    packages = ("outrider", "coordinator", "draft_service", "verify_service")
    found = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if any(maker in path.read_text() for maker in makers)
    }
    assert found == {"outrider/rpc/transport.py"}
