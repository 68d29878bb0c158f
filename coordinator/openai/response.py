"""The answer to POST /v1/responses: items of text, and the events that tell how they grow."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from coordinator.chat.deltas import Content, Delta, Reasoning
from coordinator.detokenizer import Detokenizer
from coordinator.openai.api_error import explained
from coordinator.openai.connection import named
from coordinator.openai.conversation import Conversation
from coordinator.openai.item import Item, ItemKind
from coordinator.openai.logprobs import chat_logprobs
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.steps import Steps, metrics, mode, timings
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Finished, Started, Token, Tokens
from outrider.core.protocol.messages import FinishReason, ModelInfo, TraceContext
from outrider.core.protocol.options import GenerationOptions


class ResponseAnswer:
    """The answer to one request."""

    def __init__(
        self,
        service: GenerationService,
        target: ModelInfo,
        body: ResponsesBody,
        conversation: Conversation,
        detokenizer: Detokenizer,
    ) -> None:
        self._service = service
        self._target = target
        self._body = body
        self._conversation = conversation
        self._detokenizer = detokenizer
        self._parser = conversation.parser()
        self._created = int(time.time())
        self._request_id = ""
        self._seed = 0
        self._items: list[Item] = []
        self._logprobs: list[dict[str, Any]] = []
        """Of tokens whose text is not certain yet."""

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
        return {"x-request-id": self._request_id}

    async def _events(self, options: GenerationOptions, caller: TraceContext) -> AsyncGenerator[dict[str, Any]]:
        """The last one has the whole response."""
        steps = Steps(self._service.max_draft_tokens(options), detailed=self._body.detailed)
        has_begun = False
        generating = self._service.generate(self._conversation.prompt, options, caller=caller)
        with explained(self._body.field_names):
            async with aclosing(generating) as events:
                async for event in events:
                    if isinstance(event, Started):
                        self._request_id, self._seed = event.request_id, event.seed
                        continue
                    if not has_begun:
                        has_begun = True
                        for kind in ("response.created", "response.in_progress"):
                            yield {"type": kind, "response": self._response("in_progress")}
                    for told in self._on_event(event, steps):
                        yield told
                    if isinstance(event, Finished):
                        yield self._end(event, steps)

    def _on_event(self, event: Tokens | Finished, steps: Steps) -> Iterator[dict[str, Any]]:
        if isinstance(event, Finished):
            yield from self._grow([*self._parser.push(event.text), *self._parser.finish()], ())
            if not self._items:  # an answer without a word
                yield from self._begin(ItemKind.MESSAGE)
            if self._logprobs:
                yield self._items[-1].grow("", self._taken_logprobs())
            yield from self._items[-1].end(_status(event))
        else:
            steps.on_round(event)
            yield from self._grow(self._parser.push(self._conversation.text(event)), event.tokens)

    def _grow(self, deltas: Sequence[Delta], tokens: Sequence[Token]) -> Iterator[dict[str, Any]]:
        if self._body.num_logprobs is not None:
            self._logprobs += chat_logprobs(tokens, self._detokenizer)["content"]
        for delta in deltas:
            assert isinstance(delta, Content | Reasoning), "no tools are offered"
            kind = ItemKind.MESSAGE if isinstance(delta, Content) else ItemKind.REASONING
            if not self._items or self._items[-1].kind is not kind:
                if self._items:
                    yield from self._items[-1].end("completed")
                yield from self._begin(kind)
            yield self._items[-1].grow(delta.text, self._taken_logprobs())

    def _taken_logprobs(self) -> list[dict[str, Any]]:
        taken, self._logprobs = self._logprobs, []
        return taken

    def _begin(self, kind: ItemKind) -> Iterator[dict[str, Any]]:
        self._items.append(Item(kind, len(self._items), self._request_id))
        yield from self._items[-1].begin()

    def _end(self, finished: Finished, steps: Steps) -> dict[str, Any]:
        status, usage = _status(finished), finished.usage
        *others, last = self._items
        response = self._response(status) | {
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [*(item.body("completed") for item in others), last.body(status)],
            "usage": {
                "input_tokens": usage.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.num_cached_prompt_tokens},
                "output_tokens": usage.num_generated_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
            },
            "metrics": metrics(finished, steps),
            "timings": timings(finished),
            "speculation": mode([finished]).body,
            "seed": self._seed,
        }
        return {"type": f"response.{status}", "response": response}

    def _response(self, status: str) -> dict[str, Any]:
        body = self._body
        return {
            "id": f"resp_{self._request_id}",
            "object": "response",
            "created_at": self._created,
            "model": self._target.name,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature_in_force,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _status(finished: Finished) -> str:
    return "incomplete" if finished.reason is FinishReason.LENGTH else "completed"
