"""Tool choice: which of a request's tools the model is told of, and which it must call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from coordinator.chat.parser import NAME_CHARACTERS_MAX
from outrider.core.protocol.chat_prompt import Tool
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError

TOOLS_MAX = 128
"""Most tools of a request, as OpenAI has it."""


_WRITABLE_NAME: Final = re.compile(rf"[\w./:-]{{1,{NAME_CHARACTERS_MAX}}}")
"""Names that every family's syntax can hold."""


def offered_tools(tools: Any, tool_choice: Any = None) -> Sequence[Tool] | None:
    """The tools for the chat template and for the parser; None for none. Both arguments are as a client sent them.

    `tool_choice` "none" offers none, so that the model is not told of them and whatever it writes is content. Raises
    InvalidRequestError for what is no list of functions, and for what is no choice.
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
    if tool_choice != "required" and _chosen_name(tool_choice) not in {tool["function"]["name"] for tool in tools}:
        raise _refused("tool_choice", "must be 'auto', 'none', 'required', or a function that is one of the tools")
    return tools


def forced_tools(tools: Sequence[Tool], tool_choice: Any) -> Sequence[Tool]:
    """Those of the offered `tools` of which the model must call one; none if it need not."""
    if tool_choice == "required":
        return tools
    name = _chosen_name(tool_choice)
    return [tool for tool in tools if tool["function"]["name"] == name][:1]


def check_writable(tools: Sequence[Tool]) -> None:
    """Raises InvalidRequestError for a name that a grammar of calls could not have."""
    for number, tool in enumerate(tools):
        if not _WRITABLE_NAME.fullmatch(tool["function"]["name"]):
            raise _refused(
                f"tools[{number}].function.name", "must be letters, digits and _ - . / : where calls keep to a schema"
            )


def is_named(tool_choice: Any) -> bool:
    """Whether one function is to be called, and once."""
    return _chosen_name(tool_choice) is not None


def _chosen_name(tool_choice: Any) -> str | None:
    function = tool_choice.get("function") if isinstance(tool_choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and tool_choice.get("type") == "function" else None


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
    if function.get("strict") not in (None, True, False):
        raise _refused(f"{field}.function.strict", "must be true or false")


def _refused(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])
