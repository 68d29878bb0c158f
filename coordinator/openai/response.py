"""The answer to POST /v1/responses, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from coordinator.openai.api_error import explained
from coordinator.openai.connection import first_headers, named
from coordinator.openai.conversation import Conversation
from coordinator.openai.response_writer import ResponseWriter
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.steps import Steps
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Started
from outrider.core.coordinate.round import Round
from outrider.core.protocol.messages import ModelInfo, TraceContext
from outrider.core.protocol.options import GenerationOptions


class ResponseAnswer:
    """The answer to one request."""

    def __init__(
        self, service: GenerationService, target: ModelInfo, body: ResponsesBody, conversation: Conversation
    ) -> None:
        self._service = service
        self._target = target
        self._body = body
        self._conversation = conversation
        self._headers: dict[str, str] = {}

    async def whole(self, options: GenerationOptions, caller: TraceContext) -> tuple[dict[str, Any], dict[str, str]]:
        """The answer in one piece, and its headers. Raises ApiError."""
        told: list[dict[str, Any]] = []
        async with aclosing(self._events(options, caller)) as events:
            async for event in events:
                told = [event]
        return told[0]["response"], self.headers()

    async def chunks(self, options: GenerationOptions, caller: TraceContext) -> AsyncGenerator[bytes]:
        """The answer as server-sent events. Raises ApiError."""
        number = 0
        async with aclosing(self._events(options, caller)) as events:
            async for event in events:
                yield named(event | {"sequence_number": number})
                number += 1

    def headers(self) -> dict[str, str]:
        """Headers that are known when the first event is."""
        return self._headers

    async def _events(self, options: GenerationOptions, caller: TraceContext) -> AsyncGenerator[dict[str, Any]]:
        """The last one has the whole response. Raises ApiError."""
        with explained(self._body.names):
            generating = self._service.generate(self._conversation.prompt, options, caller=caller)
            steps = Steps(self._service.max_draft_tokens(options), detailed=self._body.detailed)
            async with aclosing(generating) as events:
                started = await anext(events)
                assert isinstance(started, Started)
                self._headers = first_headers(started)
                writer = ResponseWriter(self._body, self._target, self._conversation, started, steps)
                async for event in events:
                    assert not isinstance(event, Started | Round), "reports are refused"
                    for told in writer.on_event(event):
                        yield told
