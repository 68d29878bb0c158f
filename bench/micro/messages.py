"""What messages cost: commands to a gRPC server in another process and its answers, in processor time of each end.

    python -m bench.micro.messages --sessions 1,16

Each session sends a commitment, waits for a window, and does so again, all of them on one stream, as the services do.

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
"""Round trips of each session before the clock starts."""


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
    from outrider.rpc.channels import SERVER_OPTIONS
    from outrider.rpc.checksum import Checksums
    from outrider.rpc.stream_kind import DRAFT
    from outrider.rpc.transport import Transport
    from outrider.v1 import draft_pb2_grpc
    from outrider.worker.outbox import Outbox
    from outrider.worker.session_host import SessionHost

    answer = DraftWindow(100, 1, [0, 1, 2, 1, 2, 3], list(range(6)), [-0.5] * 6, 1.5)

    class Answering:
        def __init__(self, outbox: Outbox[Any]) -> None:
            self._outbox = outbox
            outbox.put(answer, 0, 0)

        def take(self, command: object) -> None:
            self._outbox.put(answer, 0, 0)

        def finish(self) -> None: ...

        def record(self, stamped: object) -> None: ...

        def close(self, error: object) -> None: ...

    async def answering(opening: object, outbox: Outbox[Any]) -> Answering:
        return Answering(outbox)

    class Worker(draft_pb2_grpc.DraftServiceServicer):
        async def Draft(self, request_iterator: object, context: Any) -> None:
            await SessionHost(context, DRAFT, answering).run()

    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[Checksums()])
    draft_pb2_grpc.add_DraftServiceServicer_to_server(Worker(), server)
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


async def _ask(address: str, folder: str, server: int, num_sessions: int, num_messages: int) -> None:
    """Sends commitments and reads the answers, again and again; prints microseconds per session and round trip."""
    from outrider.core.protocol.messages import Commitment, DraftOpen
    from outrider.core.protocol.sampling import SamplingParams
    from outrider.rpc.channels import open_channel
    from outrider.rpc.multiplexer import Multiplexer
    from outrider.rpc.stream_kind import DRAFT
    from outrider.rpc.transport import PLAINTEXT, Transport

    transport = Transport(_files(folder, "coordinator")) if os.environ.get("SOCKET") == "tls" else PLAINTEXT
    command = Commitment(100, [3, 4, 5], False, 3.1, 0.02)
    opening = DraftOpen(
        session_id="",
        token_ids=[1],
        num_prompt_tokens=1,
        sampling=SamplingParams(),
        max_run_ahead=16,
        tree_width=0,
        max_length=8,
        vocab_size=26,
    )
    async with open_channel(address, transport) as channel:
        multiplexer = Multiplexer(channel, DRAFT)

        class Conversation:
            def __init__(self) -> None:
                self._session = multiplexer.open()
                self._ends = self._session.outcomes(self._take)
                self._num_left = 0

            def _take(self, event: object) -> bool | None:
                if not self._num_left:
                    return True
                self._num_left -= 1
                self._session.offer(command)
                return None

            async def converse(self, count: int, first: Any = command) -> None:
                self._num_left = count - 1
                self._session.offer(first)
                await anext(self._ends)

        conversations = [Conversation() for _ in range(num_sessions)]
        for each in conversations:
            await each.converse(1, opening)

        async def all_converse(count: int) -> None:
            await asyncio.gather(*(each.converse(count) for each in conversations))

        await all_converse(_NUM_FIRST // num_sessions)
        before = time.monotonic_ns(), used_ns(server), used_ns(os.getpid())
        await all_converse(num_messages // num_sessions)
        after = time.monotonic_ns(), used_ns(server), used_ns(os.getpid())
        num_done = num_messages // num_sessions * num_sessions
        print(json.dumps([(last - first) / num_done / 1000.0 for first, last in zip(before, after, strict=True)]))
        await multiplexer.close()


def _measured(environment: dict[str, str], cores: tuple[int, int], num_sessions: int, num_messages: int) -> list[float]:
    from outrider.cli.certificates import make_certificates

    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder))
        start: dict[str, Any] = {"env": os.environ | environment, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-m", "bench.micro.messages"]
        with subprocess.Popen([*command, "serve", str(cores[0]), folder], **start) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().strip()
                asking = [*command, "ask", str(cores[1]), address, folder, str(server.pid), str(num_sessions)]
                asking.append(str(num_messages))
                return json.loads(subprocess.run(asking, check=True, **start).stdout)
            finally:
                server.kill()


def main(
    num_messages: Annotated[int, typer.Option(help="Round trips that are timed, of all sessions.")] = 5_000,
    sessions: Annotated[
        str, typer.Option(help="How many sessions share the stream; several numbers by commas.")
    ] = "1,16",
    num_repeats: Annotated[int, typer.Option(help="Times that each setting is measured; the median counts.")] = 5,
) -> None:
    """What messages cost."""
    cores = sorted(os.sched_getaffinity(0))
    table = Table("", "cores", "sessions", "server, us", "client, us", "round trip, us")
    placements = [(cores[0], cores[-1]), (cores[0], cores[0])] if len(cores) > 1 else [(cores[0], cores[0])]
    counts = [int(count) for count in sessions.split(",")]
    found: dict[tuple[str, tuple[int, int], int], list[list[float]]] = {}
    for _, (name, environment), placement, count in itertools.product(
        range(num_repeats), SETTINGS.items(), placements, counts
    ):
        found.setdefault((name, placement, count), []).append(_measured(environment, placement, count, num_messages))
    for (name, placement, count), runs in found.items():
        round_trip, server, client = (statistics.median(each) for each in zip(*runs, strict=True))
        num_cores = len(set(placement))
        table.add_row(name, str(num_cores), str(count), f"{server:.0f}", f"{client:.0f}", f"{round_trip:.0f}")
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] in (["serve"], ["ask"]):
        _, what_, core_, *arguments_ = sys.argv
        os.sched_setaffinity(0, {int(core_)})
        with asyncio.Runner(loop_factory=_loop()) as runner_:
            if what_ == "serve":
                runner_.run(_serve(*arguments_))
            else:
                address_, folder_, *numbers_ = arguments_
                runner_.run(_ask(address_, folder_, *map(int, numbers_)))
    else:
        typer.run(main)
