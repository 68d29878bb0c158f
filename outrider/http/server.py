"""The HTTP server: uvicorn on the event loop that gRPC has, opened, readied and drained together with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from outrider.http.protocol import HttpProtocol
from outrider.rpc.listening import bind, listen_address

CONNECTIONS_MAX = 1024
"""Most connections at a time, as many as gRPC takes RPCs; more are answered with status 503."""

UNREAD_SECONDS = 60.0
"""How long a connection may take nothing of what is sent, before the system ends it."""

NO_RECORDS: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own telemetry: the services trace by themselves, and its records may hold what a client sent."""

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep theirs, or they would meet closed ones."""

_log = structlog.get_logger()


class HttpServer:
    """A `Door` (outrider/rpc/server.py) to an ASGI application."""

    def __init__(
        self,
        app: FastAPI,
        listen: str,
        flag: str = "--http",
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        unread_seconds: float = UNREAD_SECONDS,
    ) -> None:
        """`listen` is host:port; with port 0 `open` takes a free one; `flag` is what sets it. The app's `state.ready`
        says what `set_ready` was told. With `tls`, which may raise TlsError, it is HTTPS. A connection that takes
        nothing for `unread_seconds` is ended."""
        app.state.ready = False
        self.port = 0
        """Set by `open`."""
        self._app = app
        self._listen = listen
        self._flag = flag
        self._unread_seconds = unread_seconds
        self._tls = tls
        self._context: ssl.SSLContext
        self._draining = False
        self._serving: asyncio.Task[None] | None = None
        self._server = _Server(
            uvicorn.Config(
                app,
                http=HttpProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                ssl_context_factory=None if tls is None else lambda _config, _default: self._context,
            )
        )

    async def open(self) -> None:
        """Listens. Raises ListenError and TlsError."""
        if self._tls is not None:
            self._context = self._tls()
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # below it are greetings
        host, port = listen_address(self._listen, self._flag)
        sockets = await bind(host, port, self._flag)
        for each in sockets:
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux the system ends connections that take nothing, by itself
                milliseconds = min(math.ceil(1_000.0 * self._unread_seconds), 2**31 - 1)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            each.listen(self._server.config.backlog)
        self.port = sockets[0].getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets))
        _log.info("listening for HTTP", address=self._listen, port=self.port)

    def set_ready(self, ready: bool) -> None:
        """Says whether requests are taken; once a stop has begun they never are again."""
        self._app.state.ready = ready and not self._draining

    async def stop(self, grace_seconds: float | None) -> None:
        """Takes no more connections, lets requests end, and cancels them after `grace_seconds`; None does at once."""
        self._draining = True
        self.set_ready(False)
        if self._serving is None:
            return
        server, state = self._server, self._server.server_state
        server.should_exit = True
        if grace_seconds is not None:
            await asyncio.wait({self._serving}, timeout=grace_seconds)
        server.force_exit = True
        for request in [*state.tasks]:
            request.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        for connection in [*state.connections]:  # to clients that do not read
            connection.transport.abort()
        await self._serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process hears its own signals."""
        yield
