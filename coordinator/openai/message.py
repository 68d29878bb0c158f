"""The assistant's message as OpenAI's chat interface writes it: content, reasoning and tool calls, of deltas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coordinator.chat.deltas import Content, Delta, Reasoning, ToolCallArguments, ToolCallStart


def delta_message(deltas: Iterable[Delta]) -> dict[str, Any]:
    """What is new in a message; empty if nothing is."""
    found: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        match delta:
            case Content(text):
                found["content"] = found.get("content", "") + text
            case Reasoning(text):
                found["reasoning_content"] = found.get("reasoning_content", "") + text
            case ToolCallStart(index, call_id, name):
                function = {"name": name, "arguments": ""}
                calls[index] = {"index": index, "id": call_id, "type": "function", "function": function}
            case ToolCallArguments(index, text):
                call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                call["function"]["arguments"] += text
    return found | ({"tool_calls": [*calls.values()]} if calls else {})


def whole_message(deltas: Iterable[Delta]) -> dict[str, Any]:
    """A message from its beginning to its end."""
    found = delta_message(deltas)
    calls = [{name: call[name] for name in ("id", "type", "function")} for call in found.get("tool_calls", ())]
    return {
        "role": "assistant",
        "content": found.get("content", None if calls else ""),
        "refusal": None,
        **({"reasoning_content": found["reasoning_content"]} if "reasoning_content" in found else {}),
        **({"tool_calls": calls} if calls else {}),
    }
