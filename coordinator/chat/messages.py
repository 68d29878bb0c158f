"""Messages as clients send them, in the shape that a chat template expects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.chat.expectations import Expectations
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError

_TEXT_KINDS = frozenset({"text", "input_text", "output_text"})
"""Types of parts of a message's content that are text."""

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""What clients call a message's reasoning; templates know it by the first name, a few by the last."""

MESSAGES_MAX = 4096
"""Most messages of a conversation. A template may look at all of them for each of them."""


def conformed(messages: Sequence[Mapping[str, Any]], expects: Expectations) -> list[dict[str, Any]]:
    """New messages, with nothing in them but what JSON has. Raises InvalidRequestError for what is no text
    and for too many."""
    check_number(messages)
    return [_conformed(message, expects, f"messages[{number}]") for number, message in enumerate(messages)]


def check_number(messages: Sequence[Any]) -> None:
    """Raises InvalidRequestError for none and for too many, before anything is done with them."""
    if not messages:
        raise refused("messages", "must not be empty")
    if len(messages) > MESSAGES_MAX:
        raise refused("messages", f"are {len(messages)}; at most {MESSAGES_MAX} are allowed")


def refused(field: str, description: str) -> InvalidRequestError:
    """The error for one field."""
    return InvalidRequestError([FieldViolation(field, description)])


def _conformed(message: Any, expects: Expectations, field: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise refused(field, "must be an object with a role")
    found: dict[str, Any] = {key: value for key, value in message.items() if value is not None}
    if found.get("tool_calls"):
        found["tool_calls"] = _tool_calls(found["tool_calls"], expects, f"{field}.tool_calls")
    if expects.content_none and found.get("tool_calls") and not found.get("content"):
        found["content"] = None
    else:
        found["content"] = _content(found.get("content", ""), expects, f"{field}.content")
    reasoning = next((found[name] for name in _REASONING_FIELDS if name in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning} | found | {"reasoning_content": reasoning}
    return found


def _content(content: Any, expects: Expectations, field: str) -> Any:
    if isinstance(content, str):
        wrap = expects.content_parts and not expects.content_strings
        return [{"type": "text", "text": content}] if wrap else content
    if not isinstance(content, list):
        raise refused(field, "must be a string or a list of parts")
    texts = [_text(part, f"{field}[{number}]") for number, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if expects.content_parts else "\n".join(texts)


def _text(part: Any, field: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _TEXT_KINDS:
        raise refused(field, f"is of type {kind!r}; only text is served, no images, audio or files")
    if not isinstance(part.get("text"), str):
        raise refused(f"{field}.text", "must be a string")
    return part["text"]


def _tool_calls(calls: Any, expects: Expectations, field: str) -> list[Any]:
    if not isinstance(calls, list):
        raise refused(field, "must be a list")
    return [_tool_call(call, expects, f"{field}[{number}]") for number, call in enumerate(calls)]


def _tool_call(call: Any, expects: Expectations, field: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise refused(field, "must be an object with a function that has a name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str) and expects.argument_objects:
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise refused(f"{field}.function.arguments", "must be a JSON object") from None
    elif not isinstance(arguments, str) and not expects.argument_objects:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
