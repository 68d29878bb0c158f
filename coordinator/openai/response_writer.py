"""Writes one response: tokens become items, and the events that tell how they grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from coordinator.chat.deltas import Content, Delta, ToolCallArguments, ToolCallStart
from coordinator.openai.call_item import CallItem
from coordinator.openai.conversation import Conversation
from coordinator.openai.item import Item, ItemKind
from coordinator.openai.logprobs import chat_logprobs
from coordinator.openai.responses_body import ResponsesBody
from coordinator.openai.steps import Steps, metrics, mode, timings
from outrider.core.coordinate.events import Finished, Started, Token, Tokens
from outrider.core.protocol.messages import FinishReason, ModelInfo


class ResponseWriter:
    """From the first token to the end. Its events follow from the tokens, however rounds bring them."""

    def __init__(
        self,
        body: ResponsesBody,
        target: ModelInfo,
        conversation: Conversation,
        started: Started,
        steps: Steps,
        created: int,
    ) -> None:
        """`created` is the response's time, in seconds of the epoch."""
        self._body = body
        self._target = target
        self._conversation = conversation
        self._started = started
        self._steps = steps
        self._parser = conversation.parser(started, 0)
        self._created = created
        self._items: list[Item | CallItem] = []
        self._num_reasoning_tokens = 0
        """Behind which there was reasoning."""
        self._logprobs: list[dict[str, Any]] = []
        """Of tokens whose text is not certain yet."""

    def begin(self) -> Iterator[dict[str, Any]]:
        """The events that announce it."""
        for kind in ("response.created", "response.in_progress"):
            yield {"type": kind, "response": self._response("in_progress")}

    def on_round(self, event: Tokens) -> None:
        """A round's tokens follow."""
        self._steps.on_round(event)

    def on_token(self, token: Tokens) -> Iterator[dict[str, Any]]:
        """The events that tell of one token."""
        yield from self._grow(self._parser.push(self._conversation.text(token)), token.tokens)
        if self._items and self._items[-1].kind is ItemKind.REASONING:
            self._num_reasoning_tokens += 1

    def end(self, finished: Finished) -> Iterator[dict[str, Any]]:
        """The events that tell of its end; the last one has the whole response."""
        yield from self._grow([*self._parser.push(finished.text), *self._parser.finish()], ())
        yield from self._end(finished)

    def _grow(self, deltas: Sequence[Delta], tokens: Sequence[Token]) -> Iterator[dict[str, Any]]:
        if self._body.num_logprobs is not None:
            self._logprobs += chat_logprobs(tokens, self._conversation.detokenizer)["content"]
        for delta in deltas:
            if isinstance(delta, ToolCallStart):
                yield from self._begin(CallItem(delta, len(self._items), self._started.request_id))
                continue
            if not isinstance(delta, ToolCallArguments):
                kind = ItemKind.MESSAGE if isinstance(delta, Content) else ItemKind.REASONING
                if not self._items or self._items[-1].kind is not kind:
                    yield from self._begin(self._text_item(kind))
            yield self._items[-1].grow(delta.text, self._taken_logprobs())

    def _begin(self, item: Item | CallItem) -> Iterator[dict[str, Any]]:
        if self._items:
            yield from self._items[-1].end("completed")
        self._items.append(item)
        yield from item.begin()

    def _text_item(self, kind: ItemKind) -> Item:
        return Item(kind, len(self._items), self._started.request_id)

    def _taken_logprobs(self) -> list[dict[str, Any]]:
        taken, self._logprobs = self._logprobs, []
        return taken

    def _end(self, finished: Finished) -> Iterator[dict[str, Any]]:
        status, usage = "incomplete" if finished.reason is FinishReason.LENGTH else "completed", finished.usage
        if not self._items:  # an answer without a word
            yield from self._begin(self._text_item(ItemKind.MESSAGE))
        *others, last = self._items
        if self._logprobs and isinstance(last, Item):
            yield last.grow("", self._taken_logprobs())
        yield from last.end(status)
        response = self._response(status) | {
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [*(item.body("completed") for item in others), last.body(status)],
            "usage": {
                "input_tokens": usage.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.num_cached_prompt_tokens},
                "output_tokens": usage.num_generated_tokens,
                "output_tokens_details": {"reasoning_tokens": self._num_reasoning_tokens},
                "total_tokens": usage.num_prompt_tokens + usage.num_generated_tokens,
            },
            "metrics": metrics(finished, self._steps),
            "timings": timings(finished, self._steps),
            "speculation": mode([finished]).body,
            "seed": self._started.seed,
        }
        yield {"type": f"response.{status}", "response": response}

    def _response(self, status: str) -> dict[str, Any]:
        body = self._body
        return {
            "id": f"resp_{self._started.request_id}",
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
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature_in_force,
            "text": {"format": body.text_format},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }
