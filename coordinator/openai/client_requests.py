"""Client requests: how many one address has at a time by HTTP. More are refused."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.admission import ClientAdmission
from coordinator.openai.api_error import api_error
from coordinator.openai.authorization import OPEN_PATHS
from coordinator.openai.connection import Json
from outrider.core.protocol.errors import QueueFullError


class ClientRequests:
    """Around an application. Probes are not counted: whoever asks too much may live behind their address, too."""

    def __init__(self, app: ASGIApp, num_max: int) -> None:
        self._app = app
        self._clients = ClientAdmission(num_max)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        host, _ = scope["client"] or ("", 0)
        with ExitStack() as admitted:
            if scope["raw_path"] not in OPEN_PATHS:
                try:
                    admitted.enter_context(self._clients.admitted(host))
                except QueueFullError as error:
                    told = api_error(error, {})
                    await Json(told.body, told.status, told.headers)(scope, receive, send)
                    return
            await self._app(scope, receive, send)
