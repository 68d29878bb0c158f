"""A function call as an item of a response, and the events that tell how its arguments grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.chat.deltas import ToolCallStart
from coordinator.openai.item import ItemKind


class CallItem:
    """As `Item`, of a call."""

    kind = ItemKind.CALL

    def __init__(self, call: ToolCallStart, index: int, request_id: str) -> None:
        """`index` is its place in the response's output."""
        self._call = call
        self._id = f"fc_{request_id}_{index}"
        self._index = index
        self._texts: list[str] = []

    def begin(self) -> Sequence[dict[str, Any]]:
        """The event that announces it."""
        return [{"type": "response.output_item.added", "output_index": self._index, "item": self.body("in_progress")}]

    def grow(self, text: str, _: list[dict[str, Any]]) -> dict[str, Any]:
        """The event that tells of more arguments. Calls have no log-probabilities."""
        self._texts.append(text)
        return {"type": "response.function_call_arguments.delta", **self._place(), "delta": text}

    def end(self, status: str) -> Sequence[dict[str, Any]]:
        """The events that tell of it as a whole."""
        item = self.body(status)
        whole = {"name": item["name"], "arguments": item["arguments"]}
        return [
            {"type": "response.function_call_arguments.done", **self._place(), **whole},
            {"type": "response.output_item.done", "output_index": self._index, "item": item},
        ]

    def body(self, status: str) -> dict[str, Any]:
        """The item in a response."""
        return {
            "type": "function_call",
            "id": self._id,
            "call_id": self._call.id,
            "name": self._call.name,
            "arguments": "".join(self._texts),
            "status": status,
        }

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": self._index}
