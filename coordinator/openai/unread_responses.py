"""Unread responses: what is done for an HTTP client that takes nothing of its answer is ended."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNREAD_SECONDS = 30.0
"""How long a client may take nothing of its answer."""

_log = logging.getLogger(__name__)


class UnreadResponses:
    """Around an application, which is cancelled then, and frees what it holds for the client."""

    def __init__(self, app: ASGIApp, seconds: float = UNREAD_SECONDS) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        answering, is_given_up = asyncio.current_task(), False

        async def send_or_give_up(message: Message) -> None:
            nonlocal is_given_up
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                _log.warning("a client is given up that has taken nothing of its answer for %g s", self._seconds)
                assert answering is not None
                is_given_up = answering.cancel()
                await asyncio.Event().wait()  # for that

        try:
            await self._app(scope, receive, send_or_give_up)
        except asyncio.CancelledError:
            if not is_given_up or answering is None or answering.uncancel():
                raise
