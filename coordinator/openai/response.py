"""The answer to POST /v1/responses, whole and streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from coordinator.openai.api_error import explained
from coordinator.openai.connection import COMMENT, first_headers, named
from coordinator.openai.conversation import Conversation
from coordinator.openai.event_id import needs_stream
from coordinator.openai.response_position import ResponsePosition
from coordinator.openai.response_writer import ResponseWriter
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.steps import Steps
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Event, Finished, Started
from outrider.core.coordinate.round import Round
from outrider.core.protocol.messages import ModelInfo, TraceContext
from outrider.core.protocol.options import GenerationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedResponse:
    """A request, ready for the service."""

    conversation: Conversation
    options: GenerationOptions
    body: ResponsesBody
    caller: TraceContext
    last_event_id: str | None
    """See `Asked`."""


class ResponseAnswer:
    """The answer to one request."""

    def __init__(self, service: GenerationService, target: ModelInfo, asked: AskedResponse) -> None:
        """Raises ApiError if the answer cannot be continued where its client says."""
        self._service = service
        self._target = target
        self._asked = asked
        self._position = ResponsePosition(asked.last_event_id, 1, 1, asked.body, target)
        if asked.last_event_id is not None and not asked.body.stream:
            raise needs_stream()
        self._headers: dict[str, str] = {}

    async def whole(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The answer in one piece, and its headers. Raises ApiError."""
        last: dict[str, Any] = {}
        async with aclosing(self._events()) as events:
            async for event in events:
                last = event
        return last["response"], self.headers()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events. Raises ApiError."""
        number, is_rewriting = 0, False
        async with aclosing(self._events()) as events:
            async for event in events:
                if not self._position.on_event():
                    yield named(event | {"sequence_number": number}, self._position.event_id)
                elif not is_rewriting:  # what the client has is written anew: that may take a while
                    is_rewriting = True
                    yield COMMENT
                number += 1
        self._position.on_finished()

    def headers(self) -> dict[str, str]:
        """Headers that are known when the first event is."""
        return self._headers

    async def _events(self) -> AsyncGenerator[dict[str, Any]]:
        """The last one has the whole response. Raises ApiError."""
        asked, position = self._asked, self._position
        with explained(asked.body.names):
            options = position.options(0, asked.options)
            generating = self._service.generate(asked.conversation.prompt, options, caller=asked.caller)
            async with aclosing(generating) as events:
                started = await anext(events)
                assert isinstance(started, Started)
                self._headers = first_headers(started)
                writer = self._writer(started)
                begin: Iterable[dict[str, Any]] = writer.begin()
                async for event in events:
                    for told in chain(begin, self._on_event(writer, event)):  # a token is taken in with its events
                        yield told
                    begin = ()

    def _writer(self, started: Started) -> ResponseWriter:
        """Raises ApiError."""
        created, request_id, had = int(time.time()), started.request_id, self._position.had
        if had is not None:
            created, request_id = had.created, had.request_id
        self._position.on_started(0, started, created, request_id)
        steps = Steps(self._service.max_draft_tokens(self._asked.options), detailed=self._asked.body.detailed)
        named_as_before = replace(started, request_id=request_id)
        return ResponseWriter(self._asked.body, self._target, self._asked.conversation, named_as_before, steps, created)

    def _on_event(self, writer: ResponseWriter, event: Event) -> Iterator[dict[str, Any]]:
        assert not isinstance(event, Started | Round), "reports are refused"
        if isinstance(event, Finished):
            yield from writer.end(event)
            return
        writer.on_round(event)
        for number, token in enumerate(event.tokens):
            self._position.on_token(token)
            yield from writer.on_token(event.part(number, number + 1))
