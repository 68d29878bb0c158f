"""What a message costs: a command to a gRPC server in another process and its answer, in processor time of each end.

    python -m bench.micro.messages

Linux only. With
two cores or more each end has one of its own, and then both share one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.processor_time import used_ns
from outrider.rpc.environment import GRPC_ENVIRONMENT

SETTINGS = {
    "gRPC as it comes": {"GRPC_EXPERIMENTS": ""},
    "gRPC as it comes, uvloop": {"GRPC_EXPERIMENTS": "", "LOOP": "uvloop"},
    "without event engine": GRPC_ENVIRONMENT,
    "without event engine, uvloop": GRPC_ENVIRONMENT | {"LOOP": "uvloop"},
    "the same, TLS": GRPC_ENVIRONMENT | {"LOOP": "uvloop", "SOCKET": "tls"},
    "the same, Unix socket": GRPC_ENVIRONMENT | {"LOOP": "uvloop", "SOCKET": "unix"},
}
"""Environments of both processes. The services use uvloop without event engine, by TLS where they have certificates."""

_NUM_FIRST = 1_000
"""Round trips before the clock starts."""


def _loop() -> Callable[[], asyncio.AbstractEventLoop]:
    if os.environ.get("LOOP") != "uvloop":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def _serve(folder: str) -> None:
    """Answers each command with a window of six nodes."""
    # gRPC is imported where the environment is already that of the setting.
    import grpc.aio

    from outrider.core.protocol.messages import DraftWindow
    from outrider.rpc import wire
    from outrider.rpc.channels import SERVER_OPTIONS
    from outrider.rpc.streams import EOF
    from outrider.rpc.transport import Transport
    from outrider.v1 import draft_pb2_grpc

    answer = wire.encode_draft_event(DraftWindow(100, 1, [0, 1, 2, 1, 2, 3], list(range(6)), [-0.5] * 6, 1.5))

    class Echo(draft_pb2_grpc.DraftServiceServicer):
        async def Draft(self, request_iterator: object, context: Any) -> None:
            while await context.read() is not EOF:
                await context.write(answer)

    server = grpc.aio.server(options=SERVER_OPTIONS)
    draft_pb2_grpc.add_DraftServiceServicer_to_server(Echo(), server)
    if os.environ.get("SOCKET") == "unix":
        address = f"unix:{folder}/server-{os.getpid()}"
        server.add_insecure_port(address)
    elif os.environ.get("SOCKET") == "tls":
        address = f"127.0.0.1:{Transport(_files(folder, 'draft')).listen(server, '127.0.0.1:0')}"
    else:
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    print(address, flush=True)
    await server.wait_for_termination()


def _files(folder: str, service: str) -> Any:
    from outrider.rpc.tls_files import TlsFiles

    return TlsFiles(*(f"{folder}/{file}" for file in (f"{service}.pem", f"{service}.key", "ca.pem")))


async def _ask(address: str, folder: str, server: int, num_messages: int) -> None:
    """Sends a commitment and reads the answer, again and again; prints microseconds per round trip."""
    from outrider.core.protocol.messages import Commitment
    from outrider.rpc import wire
    from outrider.rpc.channels import open_channel
    from outrider.rpc.transport import PLAINTEXT, Transport
    from outrider.v1 import draft_pb2_grpc

    transport = Transport(_files(folder, "coordinator")) if os.environ.get("SOCKET") == "tls" else PLAINTEXT
    command = wire.encode_draft_command(Commitment(100, [3, 4, 5], False, 3.1, 0.02))
    async with open_channel(address, transport) as channel:
        call: Any = draft_pb2_grpc.DraftServiceStub(channel).Draft()

        async def converse(count: int) -> None:
            for _ in range(count):
                await call.write(command)
                await call.read()

        await converse(_NUM_FIRST)
        before = time.monotonic_ns(), used_ns(server), used_ns(os.getpid())
        await converse(num_messages)
        after = time.monotonic_ns(), used_ns(server), used_ns(os.getpid())
        print(json.dumps([(last - first) / num_messages / 1000.0 for first, last in zip(before, after, strict=True)]))
        call.cancel()


def _measured(environment: dict[str, str], cores: tuple[int, int], num_messages: int) -> list[float]:
    from outrider.cli.certificates import make_certificates

    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder))
        start: dict[str, Any] = {"env": os.environ | environment, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "bench.micro.messages"]
        with subprocess.Popen([*command, "serve", str(cores[0]), folder], **start) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().strip()
                asking = [*command, "ask", str(cores[1]), address, folder, str(server.pid), str(num_messages)]
                return json.loads(subprocess.run(asking, check=True, **start).stdout)
            finally:
                server.kill()


def main(
    num_messages: Annotated[int, typer.Option(help="Round trips that are timed.")] = 5_000,
    num_repeats: Annotated[int, typer.Option(help="Times that each setting is measured; the median counts.")] = 5,
) -> None:
    """What a message costs."""
    cores = sorted(os.sched_getaffinity(0))
    table = Table("", "cores", "server, us", "client, us", "round trip, us")
    placements = [(cores[0], cores[-1]), (cores[0], cores[0])] if len(cores) > 1 else [(cores[0], cores[0])]
    found: dict[tuple[str, tuple[int, int]], list[list[float]]] = {}
    for _, (name, environment), placement in itertools.product(range(num_repeats), SETTINGS.items(), placements):
        found.setdefault((name, placement), []).append(_measured(environment, placement, num_messages))
    for (name, placement), runs in found.items():
        round_trip, server, client = (statistics.median(each) for each in zip(*runs, strict=True))
        num_cores = len(set(placement))
        table.add_row(name, str(num_cores), f"{server:.0f}", f"{client:.0f}", f"{round_trip:.0f}")
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] in (["serve"], ["ask"]):
        _, what_, core_, *arguments_ = sys.argv
        os.sched_setaffinity(0, {int(core_)})
        with asyncio.Runner(loop_factory=_loop()) as runner_:
            if what_ == "serve":
                runner_.run(_serve(*arguments_))
            else:
                address_, folder_, server_, num_messages_ = arguments_
                runner_.run(_ask(address_, folder_, int(server_), int(num_messages_)))
    else:
        typer.run(main)
