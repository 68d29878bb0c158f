"""The server's frame: bounds, health, reflection, addresses, drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from served import DRAFT_SERVICE, Serve

from outrider.core.protocol.errors import (
    InvalidRequestError,
    ProtocolViolationError,
    SlotsExhaustedError,
    WorkerUnavailableError,
)
from outrider.rpc import server as server_module
from outrider.rpc.channels import MESSAGE_BYTES_MAX, open_channel
from outrider.rpc.listening import ListenError
from outrider.rpc.reflection import V1_SERVICE_NAME, V1ALPHA_SERVICE_NAME
from outrider.rpc.server import Server, Service
from outrider.rpc.status import error_from, rpc_errors
from outrider.rpc.streams import EOF, OutgoingStream
from outrider.v1 import draft_pb2_grpc
from outrider.v1.common_pb2 import GetModelInfoRequest, GetModelInfoResponse, ModelInfo
from outrider.v1.draft_pb2 import DraftCommand, DraftCommands, DraftEvent, DraftEvents, DraftOpen, DraftOpened

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
DRAIN_SECONDS = 60.0
"""Longer than any test waits: a test that passes did not wait for the grace to run out."""

OVERSIZED = DraftCommands(commands=[DraftCommand(open=DraftOpen(session_id="x" * MESSAGE_BYTES_MAX))])


class Echo(draft_pb2_grpc.DraftServiceServicer):
    """Answers each command of a stream with the length of its line."""

    @rpc_errors
    async def Draft(self, request_iterator: object, context: Any) -> None:
        while (request := await context.read()) is not EOF:
            opened = DraftOpened(num_line_tokens=len(request.commands[0].open.token_ids))
            await context.write(DraftEvents(events=[DraftEvent(opened=opened)]))

    @rpc_errors
    async def GetModelInfo(self, request: GetModelInfoRequest, context: Any) -> GetModelInfoResponse:
        return GetModelInfoResponse(model=ModelInfo(name="echo"))


def open_command(num_tokens: int) -> DraftCommands:
    return DraftCommands(commands=[DraftCommand(open=DraftOpen(token_ids=[1] * num_tokens))])


async def test_an_oversized_message_ends_one_stream_and_nothing_else(serve: Serve) -> None:
    served = await serve(Echo())
    bystander = served.stub.Draft()
    await bystander.write(open_command(1))
    assert (await bystander.read()).events[0].opened.num_line_tokens == 1
    unbounded = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}", unbounded) as channel:
        call = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        await call.write(OVERSIZED)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await bystander.write(open_command(2))
    assert (await bystander.read()).events[0].opened.num_line_tokens == 2


async def test_a_channel_does_not_send_an_oversized_message(serve: Serve) -> None:
    served = await serve(Echo())
    with OutgoingStream(served.stub.Draft()) as stream:
        assert not await stream.send(OVERSIZED)
        with pytest.raises(SlotsExhaustedError, match="message was too large"):
            await anext(stream.responses())


async def test_rpcs_beyond_the_bound_are_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONCURRENT_RPCS_MAX", 1)
    served = await serve(Echo())
    call = served.stub.Draft()
    await call.write(open_command(1))
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.GetModelInfo(GetModelInfoRequest())
    assert isinstance(error_from(caught.value), SlotsExhaustedError)


@pytest.mark.parametrize("path", [f"/{DRAFT_SERVICE}/GetModelInfo", "/grpc.health.v1.Health/Check"])
@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream"])
async def test_an_undecodable_request_is_the_callers_fault_and_one_line_of_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture, path: str, shape: str
) -> None:
    served = await serve(Echo())
    call = getattr(served.channel, shape)(path)(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if shape == "unary_unary" else call.read())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(error_from(caught.value), InvalidRequestError)
    assert "request: it cannot be parsed as the protobuf type of this method" in str(error_from(caught.value))
    assert [record.getMessage() for record in caplog.records] == [f"undecodable request for {path}"]
    assert (await served.stub.GetModelInfo(GetModelInfoRequest())).model.name == "echo"


async def test_health_follows_readiness(serve: Serve) -> None:
    served = await serve(Echo())
    health = health_pb2_grpc.HealthStub(served.channel)

    async def statuses() -> dict[str, int]:
        return {name: each.status for name, each in (await health.List(HealthListRequest())).statuses.items()}

    assert await statuses() == {"": SERVING, DRAFT_SERVICE: NOT_SERVING}
    served.server.set_ready(True)
    assert await statuses() == {"": SERVING, DRAFT_SERVICE: SERVING}
    assert (await health.Check(HealthCheckRequest(service=DRAFT_SERVICE))).status == SERVING
    served.server.set_ready(False)
    assert (await health.Check(HealthCheckRequest(service=DRAFT_SERVICE))).status == NOT_SERVING
    assert (await health.Check(HealthCheckRequest())).status == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_tells_each_change_and_ends_with_the_server(serve: Serve) -> None:
    served = await serve(Echo())
    health = health_pb2_grpc.HealthStub(served.channel)
    watch = health.Watch(HealthCheckRequest(service=DRAFT_SERVICE))
    unknown = health.Watch(HealthCheckRequest(service="nobody"))
    assert (await watch.read()).status == NOT_SERVING
    assert (await unknown.read()).status == SERVICE_UNKNOWN
    served.server.set_ready(True)
    assert (await watch.read()).status == SERVING
    await served.server.stop(DRAIN_SECONDS)
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is EOF
    assert await unknown.read() is EOF


@pytest.mark.parametrize("protocol", [V1_SERVICE_NAME, V1ALPHA_SERVICE_NAME])
async def test_reflection_says_in_words_that_it_cannot_parse_a_message(
    serve: Serve, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    served = await serve(Echo())
    call = served.channel.stream_stream(f"/{protocol}/ServerReflectionInfo")()
    await call.write(b"\x0a\x05no")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(call))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(error_from(caught.value), ProtocolViolationError)
    assert not caplog.records


@pytest.mark.parametrize("protocol", [V1_SERVICE_NAME, V1ALPHA_SERVICE_NAME])
async def test_reflection_answers_under_both_names(serve: Serve, protocol: str) -> None:
    served = await serve(Echo())
    ask = served.channel.stream_stream(
        f"/{protocol}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )()
    await ask.write(ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await ask.read()).list_services_response.service}
    assert names == {DRAFT_SERVICE, "grpc.health.v1.Health", V1_SERVICE_NAME, V1ALPHA_SERVICE_NAME}
    for name in names:
        await ask.write(ServerReflectionRequest(file_containing_symbol=name))
        files = (await ask.read()).file_descriptor_response.file_descriptor_proto
        described = [FileDescriptorProto.FromString(file) for file in files]
        assert name in {f"{file.package}.{service.name}" for file in described for service in file.service}
        assert {name for file in described for name in file.dependency} <= {file.name for file in described}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "[::]"])
async def test_a_port_in_use_is_said_in_words(serve: Serve, host: str) -> None:
    served = await serve(Echo())
    with pytest.raises(ListenError, match=f"port {served.port} of .* is in use.* --listen"):
        await Server().start(f"{host}:{served.port}")


@pytest.mark.parametrize(
    "listen",
    ["", "50050", "127.0.0.1", "127.0.0.1:", ":50050", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", "::1",
     "::1:50050", "unix:/tmp/socket", "no such host:50050", "192.0.2.1:0"],
)  # fmt: skip
async def test_a_bad_address_is_said_in_words(listen: str) -> None:
    with pytest.raises(ListenError, match="--listen HOST:PORT"):
        await Server().start(listen)


async def test_a_server_on_all_interfaces_is_reached_on_loopback() -> None:
    server = Server(Service(DRAFT_SERVICE, draft_pb2_grpc.add_DraftServiceServicer_to_server, Echo()))
    port = await server.start("0.0.0.0:0")
    async with open_channel(f"127.0.0.1:{port}") as channel:
        answer = await draft_pb2_grpc.DraftServiceStub(channel).GetModelInfo(GetModelInfoRequest())
    assert answer.model.name == "echo"
    await server.stop(None)


async def test_a_channel_finds_a_server_that_starts_after_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetModelInfo(GetModelInfoRequest())
        server = Server(Service(DRAFT_SERVICE, draft_pb2_grpc.add_DraftServiceServicer_to_server, Echo()))
        await server.start(f"127.0.0.1:{port}")
        answer = await stub.GetModelInfo(GetModelInfoRequest(), wait_for_ready=True)
        assert answer.model.name == "echo"
        await server.stop(None)


async def test_a_signal_drains_and_lets_streams_finish(serve: Serve) -> None:
    served = await serve(Echo())
    served.server.set_ready(True)
    running = asyncio.create_task(served.server.run_until_signalled(DRAIN_SECONDS))
    watch = health_pb2_grpc.HealthStub(served.channel).Watch(HealthCheckRequest(service=DRAFT_SERVICE))
    call = served.stub.Draft()
    await call.write(open_command(1))
    await call.read()
    assert (await watch.read()).status == SERVING
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await watch.read()).status == NOT_SERVING
    await call.write(open_command(2))
    assert (await call.read()).events[0].opened.num_line_tokens == 2
    assert not running.done()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.GetModelInfo(GetModelInfoRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await call.done_writing()
    assert await call.read() is EOF
    await running


async def test_a_second_signal_stops_at_once(serve: Serve) -> None:
    served = await serve(Echo())
    running = asyncio.create_task(served.server.run_until_signalled(DRAIN_SECONDS))
    watch = health_pb2_grpc.HealthStub(served.channel).Watch(HealthCheckRequest(service=DRAFT_SERVICE))
    await watch.read()
    call = served.stub.Draft()
    await call.write(open_command(1))
    await call.read()
    os.kill(os.getpid(), signal.SIGINT)
    assert await watch.read() is EOF
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await running


SERVE_ALONE = """
import asyncio
from outrider.rpc.server import Server

async def main():
    server = Server()
    await server.start("127.0.0.1:0")
    asyncio.get_running_loop().call_soon(print, "up")
    await server.run_until_signalled(60)

asyncio.run(main())
"""


def test_a_drained_process_exits_with_0() -> None:
    command = [sys.executable, "-u", "-c", SERVE_ALONE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


async def test_what_a_stop_waits_for_is_ended_in_words_before_it_is_cancelled() -> None:
    is_over = asyncio.Event()

    class Patient(draft_pb2_grpc.DraftServiceServicer):
        @rpc_errors
        async def Draft(self, request_iterator: object, context: Any) -> None:
            await context.write(DraftEvents())
            await is_over.wait()
            raise WorkerUnavailableError("it is stopping; go on elsewhere")

    add = draft_pb2_grpc.add_DraftServiceServicer_to_server
    server = Server(Service(DRAFT_SERVICE, add, Patient(), on_grace_over=is_over.set))
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        await call.read()
        stopping = asyncio.create_task(server.stop(server_module.LAST_WORDS_SECONDS))
        with pytest.raises(grpc.aio.AioRpcError, match="it is stopping; go on elsewhere") as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping
