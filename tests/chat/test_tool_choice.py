"""Which tools a model is told of, and what is refused of a client's."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.chat.tool_choice import TOOLS_MAX, check_writable, forced_tools, is_named, offered_tools
from outrider.core.protocol.errors import InvalidRequestError
from tests.chat.conversations import TIME, WEATHER

NOW = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize(
    ("tools", "choice", "expected"),
    [
        (None, None, None),
        (None, "auto", None),
        (None, "none", None),
        ([WEATHER], None, [WEATHER]),
        ([WEATHER], "auto", [WEATHER]),
        ([WEATHER], "none", None),
        ([WEATHER, TIME], "required", [WEATHER, TIME]),
        ([WEATHER, TIME], NOW, [WEATHER, TIME]),
    ],
)
def test_offered_tools(tools: Any, choice: Any, expected: Any) -> None:
    assert offered_tools(tools, choice) == expected


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([WEATHER], NOW, "tool_choice: must be 'auto', .* or a function that is one of the tools"),
        ([WEATHER], {"type": "function", "function": "get_weather"}, "tool_choice: must be 'auto'"),
        ([WEATHER], {"type": "allowed_tools", "function": {"name": "get_weather"}}, "tool_choice: must be 'auto'"),
        ([WEATHER], "always", "tool_choice: must be 'auto'"),
        ([WEATHER], 5, "tool_choice: must be 'auto'"),
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
        (
            [{"type": "function", "function": {"name": "f", "strict": "yes"}}],
            None,
            r"tools\[0\].function.strict: must be true or false",
        ),
    ],
)
def test_what_cannot_be_offered_is_refused(tools: Any, choice: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        offered_tools(tools, choice)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [(None, []), ("auto", []), ("required", [WEATHER, TIME]), (NOW, [TIME])],
)
def test_forced_tools(choice: Any, expected: Any) -> None:
    assert forced_tools([WEATHER, TIME], choice) == expected
    assert is_named(choice) is (choice is NOW)


@pytest.mark.parametrize("name", ["", "a b", 'a"', "<tool_call>", "a\n", "x" * 257])
def test_a_name_that_no_call_could_have_is_refused(name: str) -> None:
    tools = [WEATHER, {"type": "function", "function": {"name": name}}]
    with pytest.raises(InvalidRequestError, match=r"tools\[1\].function.name: must be letters"):
        check_writable(tools)
