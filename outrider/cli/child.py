"""One service as a sub-process: its log, its readiness, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.cli.record import readable
from outrider.core.protocol.errors import OutriderError
from outrider.machine.tether import tethered
from outrider.rpc.channels import open_channel
from outrider.rpc.status import error_from
from outrider.rpc.transport import PLAINTEXT, Transport

LOG_TAIL_LINES = 20
"""How many last lines of its log are told when a service dies: a traceback's end, or the reason in words."""

LOG_LINE_BYTES_MAX = 64 * 1024
"""Longest line that is kept whole; what exceeds it becomes the next line."""

STOP_GRACE_S = 30.0
"""Time from SIGTERM to SIGKILL. Services drain for 20 s by default, so one that takes longer hangs."""

_LOG_END_S = 1.0
"""Time to read the rest of a dead service's log, should a process of its own still hold it open."""


class Phase(Enum):
    """Where a service stands."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    ENDED = "ended"


class Observer:
    """Is told what the services do; this one does not care."""

    def phase(self, name: str, phase: Phase) -> None:
        """The service has come to `phase`."""

    def log(self, name: str, line: str) -> None:
        """The service has logged a line."""

    def notice(self, text: str) -> None:
        """Something has happened that the user should know."""


class ServiceDiedError(OutriderError):
    """A service ended by itself."""

    def __init__(self, name: str, exit_code: int, tail: Sequence[str]) -> None:
        lines = "\n".join(f"  {line}" for line in tail) if tail else "  (it has logged nothing)"
        how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"
        if exit_code == -signal.SIGKILL:
            how += ", as systems do that run out of memory (`dmesg` tells)"
        super().__init__(f"the {name} service {how}; its last lines:\n{lines}")


class Child:
    """One service. It ends with this process, whatever ends that; see `tether.py`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        address: str,
        health_service: str,
        observer: Observer,
        http_address: str | None = None,
        transport: Transport = PLAINTEXT,
    ) -> None:
        """`command` is the module to run and its arguments; it is ready once `health_service` serves at `address`."""
        self.name = name
        self.transport = transport
        """How it is reached."""
        self.address = address
        self.http_address = http_address
        """Where it answers HTTP, if it does."""
        self._command = command
        self._health_service = health_service
        self._observer = observer
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._end: asyncio.Task[int] | None = None

    async def start(self) -> None:
        """Starts the process in a session of its own, so that the terminal's Ctrl-C does not reach it."""
        self._observer.phase(self.name, Phase.STARTING)
        self._process = await asyncio.create_subprocess_exec(
            *tethered(*self._command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._end = asyncio.create_task(self._follow(self._process), name=f"{self.name} end")

    @property
    def end(self) -> asyncio.Task[int]:
        """Done when the process has ended and its log is read; the result is its exit code. Only after `start`."""
        assert self._end is not None
        return self._end

    async def ready(self) -> None:
        """Returns when the service serves. Raises ServiceDiedError if it ends before that."""
        health = asyncio.create_task(self._serving(), name=f"{self.name} health")
        try:
            await asyncio.wait({health, self.end}, return_when=asyncio.FIRST_COMPLETED)
            if self.end.done():
                raise self.death()
            await health
        finally:
            health.cancel()
            await asyncio.gather(health, return_exceptions=True)
        self._observer.phase(self.name, Phase.READY)

    @property
    def process_id(self) -> int:
        """The service's process, as the operating system knows it. Only after `start`."""
        assert self._process is not None
        return self._process.pid

    def death(self) -> ServiceDiedError:
        """The error that tells of the process's end. Only after it."""
        return ServiceDiedError(self.name, self.end.result(), list(self._tail))

    async def stop(self) -> None:
        """Asks the service to drain and waits for its end; kills it after `STOP_GRACE_S`."""
        if self._end is None or self._process is None or self._end.done():
            return
        self._observer.phase(self.name, Phase.STOPPING)
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        done, _ = await asyncio.wait({self._end}, timeout=STOP_GRACE_S)
        if not done:
            self._observer.notice(f"the {self.name} service has not stopped in {STOP_GRACE_S:g} s and is killed")
            await self.kill()

    async def kill(self) -> None:
        """Ends the process at once, if it is still there, and what it has started in its session, such as compilers."""
        if self._end is None or self._process is None:
            return
        if not self._end.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.wait({self._end})

    async def _serving(self) -> None:
        request = health_pb2.HealthCheckRequest(service=self._health_service)
        async with open_channel(self.address, self.transport) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    async for response in stub.Watch(request, wait_for_ready=True):
                        if response.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                        self._observer.phase(self.name, Phase.LOADING)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise error_from(error) from error

    async def _follow(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdout is not None
        log = asyncio.create_task(self._read_log(process.stdout), name=f"{self.name} log")
        exit_code = await process.wait()
        await asyncio.wait({log}, timeout=_LOG_END_S)
        log.cancel()
        self._observer.phase(self.name, Phase.ENDED)
        return exit_code

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        async for record in _lines(stream):
            for line in readable(record).splitlines():
                self._tail.append(line)
                self._observer.log(self.name, line)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The stream's lines that are not empty. A carriage return ends one too: progress bars write nothing else."""
    rest = b""
    while chunk := await stream.read(LOG_LINE_BYTES_MAX):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) >= LOG_LINE_BYTES_MAX:
            lines.append(rest)
            rest = b""
        for line in lines:
            if line.strip():
                yield line.decode(errors="replace").rstrip()
    if rest.strip():
        yield rest.decode(errors="replace").rstrip()
