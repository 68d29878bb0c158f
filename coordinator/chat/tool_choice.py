"""Tool choice: which of a request's tools the model is told of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outrider.core.protocol.chat_prompt import Tool
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError

TOOLS_MAX = 128
"""Most tools of a request, as OpenAI has it."""


def offered_tools(tools: Any, tool_choice: Any = None) -> Sequence[Tool] | None:
    """The tools for the chat template and for the parser; None for none. Both arguments are as a client sent them.

    `tool_choice` "none" offers none, so that the model is not told of them and whatever it writes is content. Raises
    InvalidRequestError for what is no list of functions, and for a choice that would have to be forced on the model.
    """
    if tools is not None:
        if not isinstance(tools, list) or not tools or len(tools) > TOOLS_MAX:
            raise _refused("tools", f"must be a list of 1 to {TOOLS_MAX} tools; leave it out for none")
        for number, tool in enumerate(tools):
            _check_tool(tool, f"tools[{number}]")
    if tool_choice is None or tool_choice in ("auto", "none"):
        return None if tool_choice == "none" else tools
    if tools is None:
        raise _refused("tool_choice", "needs tools; send some, or leave it out")
    if tool_choice == "required" or isinstance(tool_choice, dict):
        raise _refused(
            "tool_choice",
            "a call cannot be forced, because answers cannot be held to a schema yet; use 'auto' and say in a message "
            "which tool to call",
        )
    raise _refused("tool_choice", "must be 'auto' or 'none'")


def _check_tool(tool: Any, field: str) -> None:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise _refused(field, "must be an object of type 'function'; other kinds of tools are not supported")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise _refused(f"{field}.function", "must be an object with a name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise _refused(f"{field}.function.parameters", "must be a JSON schema, an object")
    if parameters and not isinstance(parameters.get("properties") or {}, dict):
        raise _refused(f"{field}.function.parameters.properties", "must be an object")


def _refused(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])
