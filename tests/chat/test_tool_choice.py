"""Which tools a model is told of, and what is refused of a client's."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.chat.tool_choice import TOOLS_MAX, offered_tools
from outrider.core.protocol.errors import InvalidRequestError
from tests.chat.conversations import WEATHER


@pytest.mark.parametrize(
    ("tools", "choice", "expected"),
    [
        (None, None, None),
        (None, "auto", None),
        (None, "none", None),
        ([WEATHER], None, [WEATHER]),
        ([WEATHER], "auto", [WEATHER]),
        ([WEATHER], "none", None),
    ],
)
def test_offered_tools(tools: Any, choice: Any, expected: Any) -> None:
    assert offered_tools(tools, choice) == expected


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([WEATHER], "required", "tool_choice: a call cannot be forced"),
        ([WEATHER], {"type": "function", "function": {"name": "get_weather"}}, "tool_choice: a call cannot be forced"),
        ([WEATHER], "always", "tool_choice: must be 'auto' or 'none'"),
        ([WEATHER], 5, "tool_choice: must be 'auto' or 'none'"),
        (None, "required", "tool_choice: needs tools"),
        ({}, None, "tools: must be a list"),
        ([], None, "tools: must be a list"),
        ([WEATHER] * (TOOLS_MAX + 1), None, "tools: must be a list"),
        (["f"], None, r"tools\[0\]: must be an object of type 'function'"),
        ([WEATHER, {"type": "web_search"}], None, r"tools\[1\]: must be an object of type 'function'"),
        ([{"type": "function"}], None, r"tools\[0\].function: must be an object with a name"),
        ([{"type": "function", "function": {"name": ""}}], None, r"tools\[0\].function: must be an object with a name"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": []}}],
            None,
            r"tools\[0\].function.parameters: must be a JSON schema",
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"properties": [1]}}}],
            None,
            r"tools\[0\].function.parameters.properties: must be an object",
        ),
    ],
)
def test_what_cannot_be_offered_is_refused(tools: Any, choice: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        offered_tools(tools, choice)
