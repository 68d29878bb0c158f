"""Serve: one service from the start of its server until it has drained."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import grpc.aio
import structlog

from outrider.machine.garbage import pass_over_loaded
from outrider.rpc.server import Door, Server, Service
from outrider.rpc.transport import Transport

_log = structlog.get_logger()


class ServeConfig(Protocol):
    """The settings that every service has."""

    @property
    def listen(self) -> str:
        """`host:port` to serve on."""
        ...

    @property
    def drain_seconds(self) -> float:
        """Time that RPCs in flight get to finish after SIGTERM."""
        ...


async def serve(
    config: ServeConfig,
    service: Service,
    transport: Transport,
    doors: Sequence[Door] = (),
    guards: Sequence[grpc.aio.ServerInterceptor] = (),
    *,
    reflection: bool = True,
) -> None:
    """Listens, then runs `service.work` while RPCs are answered, until SIGTERM or SIGINT. Only in the main thread.

    The work is cancelled once the last RPC has ended. Raises ListenError and TlsError, or what the work raises: the
    server then stops at once.
    """
    server = Server(service, transport=transport, doors=doors, guards=guards, reflection=reflection)
    port = await server.start(config.listen)
    _log.info("listening", address=config.listen, port=port)
    serving = asyncio.create_task(server.run_until_signalled(config.drain_seconds))

    def set_ready(ready: bool) -> None:
        if ready:
            pass_over_loaded()
        server.set_ready(ready)

    work = asyncio.create_task(service.work(set_ready))
    try:
        await asyncio.wait({serving, work}, return_when=asyncio.FIRST_COMPLETED)
        if work.done() and work.exception() is not None:
            await server.stop(None)
        await serving
    finally:
        work.cancel()
        serving.cancel()
        await asyncio.gather(work, serving, return_exceptions=True)
    if not work.cancelled():
        work.result()
