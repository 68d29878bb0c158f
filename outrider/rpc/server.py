"""The gRPC server of a service: bounds, health, reflection, drain, and a clear message when a port is taken."""

# grpcio's companions have no types of their own.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeAlias

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from outrider.core.protocol.address import Address, parse_address
from outrider.core.protocol.errors import OutriderError
from outrider.rpc import health
from outrider.rpc.channels import SERVER_OPTIONS
from outrider.rpc.reflection import add_reflection
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.rpc.undecodable import UndecodableRequests

CONCURRENT_RPCS_MAX = 1024
"""Most RPCs at a time; more are refused with RESOURCE_EXHAUSTED. Far above the slots of any worker, which refuses
sessions in better words, so that probes and information calls get through when every slot is taken."""

_log = logging.getLogger(__name__)


class ListenError(OutriderError):
    """The server cannot listen on the configured address."""


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


class Server:
    """One gRPC server with health and reflection. Make it inside a running event loop, and start it once."""

    def __init__(self, *services: Service, transport: Transport = PLAINTEXT) -> None:
        self._transport = transport
        self._server = grpc.aio.server(
            interceptors=[UndecodableRequests()],
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=CONCURRENT_RPCS_MAX,
        )
        names = [service.name for service in services]
        self._health = health.HealthServicer(names)
        self._services = services
        for service in services:
            service.add_to_server(service.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, [*names, health.SERVICE_NAME])

    async def start(self, listen: str) -> int:
        """Listens on `listen` (`host:port`; port 0 takes a free one), the services not ready yet. Returns the port.

        Raises ListenError, in words for the user, if that is no address or the port is taken.
        """
        host, port = _parsed(listen)
        await _check_free(host, port, listen)
        try:
            bound = self._transport.listen(self._server, listen)
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {listen}; choose another address with --listen HOST:PORT") from error
        await self._server.start()
        return bound

    def set_ready(self, ready: bool) -> None:
        """Says through health whether the services take requests. Once a stop has begun they never do again."""
        self._health.set_ready(ready)

    async def stop(self, grace_seconds: float | None) -> None:
        """Turns health to NOT_SERVING, refuses new RPCs, lets those in flight end, cancels them after `grace_seconds`.

        None cancels them at once. A second call may shorten the grace of the first.
        """
        self._health.drain()
        for service in self._services:
            service.on_stop()
        await self._server.stop(grace_seconds)

    async def run_until_signalled(self, drain_seconds: float) -> None:
        """Serves until SIGTERM or SIGINT, then stops with `drain_seconds` of grace. A second signal stops at once.

        Returns when the last RPC has ended, so that the process can exit with 0. Only in the main thread.
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

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, on_signal)
            try:
                await self._server.wait_for_termination()
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)


def _parsed(listen: str) -> Address:
    try:
        return parse_address(listen, port_min=0)
    except ValueError as error:
        raise ListenError(f"cannot listen: {error}; use --listen HOST:PORT") from error


async def _check_free(host: str, port: int, listen: str) -> None:
    """Binds and frees each address of `host`: gRPC is content with any one of them and does not say what is wrong."""
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(
            f"the host of {listen!r} is not known; use --listen HOST:PORT with a host or address"
        ) from error
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ListenError(
                        f"port {port} of {host} is in use; stop what listens there or use --listen with another port"
                    ) from error
                if error.errno == errno.EACCES:
                    raise ListenError(f"port {port} needs privileges; use --listen with a port above 1023") from error
                # An address that this machine lacks is no harm while the host has others; gRPC tells if none is left.
