"""Authorization of HTTP requests: whatever path is not open to everybody needs a token, be there such a path or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator import audit
from coordinator.authorization import UNKNOWN_TOKEN
from coordinator.caller import ANYONE, CALLER
from coordinator.openai.api_error import api_error
from coordinator.openai.connection import Json
from coordinator.tokens import Tokens
from outrider.core.protocol.errors import UnauthenticatedError

OPEN_PATHS: Final = frozenset({b"/healthz", b"/readyz"})
"""Paths that need no token, exactly as they are sent: no other spelling of them is open."""


class Authorization:
    """Around an application: finds out who asks, and keeps a record of it."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        on_refused: Callable[[str], None],
        open_paths: frozenset[bytes] = OPEN_PATHS,
    ) -> None:
        """`on_refused` hears the reason of each refusal; `open_paths` are answered to anybody."""
        self._app = app
        self._tokens = tokens
        self._on_refused = on_refused
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has it answered."""
        if scope["raw_path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        caller, status, outcome, started = ANYONE, "", audit.CANCELLED, time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status, outcome
            await send(message)
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif not message.get("more_body", False):
                outcome = status

        try:
            headers = {key: value for key, value in scope["headers"] if key == b"authorization"}
            caller = self._tokens.caller(headers.get(b"authorization", b"").decode("latin-1"))
            CALLER.set(caller)
            await self._app(scope, receive, sending)
        except UnauthenticatedError as error:
            self._on_refused(UNKNOWN_TOKEN)
            told = api_error(error, {})
            await Json(told.body, told.status, told.headers)(scope, receive, sending)
        finally:
            method = f"{scope['method']} {scope['raw_path'].decode('latin-1')}"
            peer = ":".join(map(str, scope["client"] or ()))
            audit.record(caller, method, peer, outcome, time.monotonic() - started)
