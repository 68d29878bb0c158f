"""The gRPC server of a service: bounds, health, reflection, drain, and a clear message when a port is taken."""

# grpcio's companions have no types of their own.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from outrider.rpc import health
from outrider.rpc.channels import SERVER_OPTIONS
from outrider.rpc.checksum import Checksums
from outrider.rpc.listening import ListenError, bind, listen_address
from outrider.rpc.reflection import add_reflection
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.rpc.undecodable import UndecodableRequests

CONCURRENT_RPCS_MAX = 1024
"""Most RPCs at a time; more are refused with RESOURCE_EXHAUSTED. Far above the slots of any worker, which refuses
sessions in better words, so that probes and information calls get through when every slot is taken."""

LAST_WORDS_SECONDS = 1.0
"""Part of a stop's grace in which clients are told why what they wait for ends, and how to go on."""

_log = logging.getLogger(__name__)


SetReady: TypeAlias = Callable[[bool], None]
"""Sets through health whether a service takes requests."""


async def ready_at_once(set_ready: SetReady) -> None:
    """The work of a service that has nothing to load."""
    set_ready(True)
    _log.info("ready")


def end_nothing() -> None:
    """For a service whose RPCs all end by themselves."""


class Service(NamedTuple):
    """One service to offer: its RPCs, and what it does beside answering them."""

    name: str
    """Full name, for example `outrider.v1.DraftService`."""
    add_to_server: Callable[[Any, Any], None]
    """The generated `add_..._to_server`."""
    servicer: object
    work: Callable[[SetReady], Coroutine[Any, Any, None]] = ready_at_once
    """Runs from the moment that the server listens until it has stopped, when it is cancelled, or to its own end. It
    decides when the service is ready. If it raises, the service stops."""
    on_stop: Callable[[], None] = end_nothing
    """Called when a stop begins: it ends RPCs that would go on for ever."""
    on_grace_over: Callable[[], None] = end_nothing
    """Called LAST_WORDS_SECONDS before RPCs are cancelled that a stop has waited for: it ends them in words."""


class Door(Protocol):
    """Another way to the same services than gRPC, which opens, becomes ready and drains with the gRPC server."""

    async def open(self) -> None:
        """Listens. Raises ListenError."""
        ...

    def set_ready(self, ready: bool) -> None:
        """Says whether the services take requests."""
        ...

    async def stop(self, grace_seconds: float | None) -> None:
        """As `Server.stop`."""
        ...


class Server:
    """One gRPC server with health and reflection. Make it inside a running event loop, and start it once."""

    def __init__(
        self,
        *services: Service,
        transport: Transport = PLAINTEXT,
        doors: Sequence[Door] = (),
        guards: Sequence[grpc.aio.ServerInterceptor] = (),
        reflection: bool = True,
    ) -> None:
        """Every RPC passes the `guards`, the first one first. `reflection` describes the services to whoever asks."""
        self._transport = transport
        self._doors = doors
        self._server = grpc.aio.server(
            interceptors=[*guards, UndecodableRequests(), Checksums()],
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=CONCURRENT_RPCS_MAX,
        )
        names = [service.name for service in services]
        self._health = health.HealthServicer(names)
        self._services = services
        for service in services:
            service.add_to_server(service.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflection:
            add_reflection(self._server, [*names, health.SERVICE_NAME])

    async def start(self, listen: str) -> int:
        """Listens on `listen` (`host:port`; port 0 takes a free one), the services not ready yet. Returns the port.

        Raises ListenError, in words for the user, if that is no address or the port is taken, and TlsError.
        """
        host, port = listen_address(listen)
        # gRPC is content with any one of the host's addresses and does not say what is wrong with the others.
        for probe in await bind(host, port):
            probe.close()
        try:
            bound = self._transport.listen(self._server, listen)
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {listen}; choose another address with --listen HOST:PORT") from error
        for door in self._doors:
            await door.open()
        await self._server.start()
        return bound

    def set_ready(self, ready: bool) -> None:
        """Says through health whether the services take requests. Once a stop has begun they never do again."""
        self._health.set_ready(ready)
        for door in self._doors:
            door.set_ready(ready)

    async def stop(self, grace_seconds: float | None) -> None:
        """Turns health to NOT_SERVING, refuses new RPCs, lets those in flight end, cancels them after `grace_seconds`.

        None cancels them at once. A second call may shorten the grace of the first.
        """
        self._health.drain()
        for service in self._services:
            service.on_stop()
        loop, delay = asyncio.get_running_loop(), max((grace_seconds or 0.0) - LAST_WORDS_SECONDS, 0.0)
        last_words = [loop.call_later(delay, service.on_grace_over) for service in self._services]
        await asyncio.gather(self._server.stop(grace_seconds), *(door.stop(grace_seconds) for door in self._doors))
        for each in last_words:
            each.cancel()

    async def run_until_signalled(self, drain_seconds: float) -> None:
        """Serves until SIGTERM or SIGINT, then stops with `drain_seconds` of grace. A second signal stops at once.

        Returns when the last RPC has ended and every door is shut, so that the process can exit with 0; who handled the
        signals before then handles them again. Only in the main thread.
        """
        loop = asyncio.get_running_loop()
        graces = iter((drain_seconds,))
        async with asyncio.TaskGroup() as stops:

            def on_signal() -> None:
                grace_seconds = next(graces, None)
                if grace_seconds is None:
                    _log.warning("stopping at once")
                else:
                    _log.info("draining for at most %g s; a second signal stops at once", grace_seconds)
                stops.create_task(self.stop(grace_seconds))

            before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            for number in before:
                loop.add_signal_handler(number, on_signal)
            try:
                await self._server.wait_for_termination()
            finally:
                for number, handler in before.items():
                    loop.remove_signal_handler(number)
                    signal.signal(number, handler)
