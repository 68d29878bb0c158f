"""The answer to POST /v1/responses: items of text, and the events that tell how they grow."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from coordinator.chat.deltas import Content, Delta, Reasoning
from coordinator.detokenizer import Detokenizer
from coordinator.openai.api_error import explained
from coordinator.openai.connection import named
from coordinator.openai.conversation import Conversation
from coordinator.openai.item import Item
from coordinator.openai.logprobs import chat_logprobs
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.steps import Steps, metrics, mode, timings
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Finished, Started, Token
from outrider.core.protocol.messages import FinishReason, ModelInfo, TraceContext
from outrider.core.protocol.options import GenerationOptions


class ResponseAnswer:
    """The answer to one request."""

    def __init__(
        self,
        service: GenerationService,
        target: ModelInfo,
        body: ResponsesBody,
        options: GenerationOptions,
        conversation: Conversation,
        detokenizer: Detokenizer,
        caller: TraceContext,
    ) -> None:
        self._service = service
        self._target = target
        self._body = body
        self._options = options
        self._conversation = conversation
        self._detokenizer = detokenizer
        self._caller = caller
        self._created = int(time.time())
        self._parser = conversation.parser()
        self._steps = Steps(service.max_draft_tokens(options), detailed=body.detailed)
        self._items: list[Item] = []
        self._request_id = ""
        self._num_events = 0

    async def whole(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The answer in one piece, and its headers. Raises ApiError."""
        event: dict[str, Any] = {}
        async with aclosing(self._events()) as events:
            async for event in events:
                pass
        return event["response"], self.headers()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events. Raises ApiError."""
        async with aclosing(self._events()) as events:
            async for event in events:
                yield named(event | {"sequence_number": self._num_events})
                self._num_events += 1

    def headers(self) -> dict[str, str]:
        """Headers that are known when the first event is."""
        return {"x-request-id": self._request_id}

    async def _events(self) -> AsyncGenerator[dict[str, Any]]:
        generating = self._service.generate(self._conversation.prompt, self._options, caller=self._caller)
        with explained(self._body.field_names):
            async with aclosing(generating) as events:
                started: Started | None = None
                async for event in events:
                    if isinstance(event, Started):
                        started = event
                        self._request_id = event.request_id
                        continue
                    if not self._items and self._num_events == 0:
                        pass
                    yield {}
