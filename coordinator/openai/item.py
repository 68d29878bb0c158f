"""A text as an item of a response, a message or the reasoning in front of it, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any


class ItemKind(Enum):
    """What an item is, and the name that its text has in events."""

    MESSAGE = "output_text"
    REASONING = "reasoning_text"
    CALL = "function_call_arguments"


class Item:
    """An item that grows."""

    def __init__(self, kind: ItemKind, index: int, request_id: str) -> None:
        """`index` is its place in the response's output."""
        self.kind = kind
        self._id = f"{'msg' if kind is ItemKind.MESSAGE else 'rs'}_{request_id}_{index}"
        self._index = index
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def begin(self) -> Sequence[dict[str, Any]]:
        """The events that announce it."""
        item = self._body("in_progress", [])
        return [
            {"type": "response.output_item.added", "output_index": self._index, "item": item},
            {"type": "response.content_part.added", **self._place(), "part": self._part()},
        ]

    def grow(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        """The event that tells of more text."""
        self._texts.append(text)
        self._logprobs += logprobs
        event = {"type": f"response.{self.kind.value}.delta", **self._place(), "delta": text}
        return event | ({"logprobs": logprobs} if self.kind is ItemKind.MESSAGE else {})

    def end(self, status: str) -> Sequence[dict[str, Any]]:
        """The events that tell of it as a whole."""
        part = self._part()
        logprobs = {"logprobs": self._logprobs} if self.kind is ItemKind.MESSAGE else {}
        return [
            {"type": f"response.{self.kind.value}.done", **self._place(), "text": part["text"], **logprobs},
            {"type": "response.content_part.done", **self._place(), "part": part},
            {"type": "response.output_item.done", "output_index": self._index, "item": self.body(status)},
        ]

    def body(self, status: str) -> dict[str, Any]:
        """The item in a response."""
        return self._body(status, [self._part()])

    def _body(self, status: str, content: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if self.kind is ItemKind.MESSAGE:
            return {"type": "message", "id": self._id, "status": status, "role": "assistant", "content": content}
        return {"type": "reasoning", "id": self._id, "status": status, "summary": [], "content": content}

    def _part(self) -> dict[str, Any]:
        text = {"type": self.kind.value, "text": "".join(self._texts)}
        return text | ({"annotations": [], "logprobs": self._logprobs} if self.kind is ItemKind.MESSAGE else {})

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index, "content_index": 0}
