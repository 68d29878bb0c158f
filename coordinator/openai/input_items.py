"""Items of a response's input, as the conversation that a chat template takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.chat.messages import MESSAGES_MAX
from coordinator.openai.api_error import ApiError

ITEMS_MAX = 4 * MESSAGES_MAX
"""Most items of an input: of a message of the model's there may be several."""


def messages_of(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages, among them one for all items of a turn of the model's. Raises ApiError for what is no such item."""
    if len(items) > ITEMS_MAX:
        raise ApiError(f"input has {len(items)} items; at most {ITEMS_MAX} are allowed", param="input")
    found = _Messages()
    for number, item in enumerate(items):
        found.add(item, f"input[{number}]")
    return found.messages


class _Messages:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning = ""
        """What belongs to the message that the model's next item begins."""

    def add(self, item: Any, field: str) -> None:
        """Raises ApiError."""
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        match kind:
            case "message":
                self._begin(item.get("role"), content=item.get("content"))
            case "reasoning":
                self._reasoning += _reasoning_text(item, field)
            case "function_call":
                call_id, name, arguments = (_text(item, key, field) for key in ("call_id", "name", "arguments"))
                if not self.messages or self.messages[-1]["role"] != "assistant":
                    self._begin("assistant", content=None)
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                self.messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                self._begin("tool", content=item.get("output"), tool_call_id=_text(item, "call_id", field))
            case _:
                raise ApiError(
                    f"{field} is no message, reasoning, function_call or function_call_output; other items are not "
                    "supported here",
                    param="input",
                )

    def _begin(self, role: Any, **fields: Any) -> None:
        reasoning = {}
        if role == "assistant" and self._reasoning:
            reasoning, self._reasoning = {"reasoning_content": self._reasoning}, ""
        self.messages.append({"role": role, **fields, **reasoning})


def _text(item: Mapping[str, Any], key: str, field: str) -> str:
    text = item.get(key)
    if not isinstance(text, str):
        raise ApiError(f"{field}.{key} must be a string", param="input")
    return text


def _reasoning_text(item: Mapping[str, Any], field: str) -> str:
    parts = item.get("content") or ()
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise ApiError(f"{field}.content must be a list of parts", param="input")
    return "".join(_text(part, "text", f"{field}.content[{number}]") for number, part in enumerate(parts))
