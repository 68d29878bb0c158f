"""Conversations as clients send them, and where a template wants another shape, as transformers is given them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a place, in °C <b>today</b> & "tomorrow"',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


class Case(NamedTuple):
    """One conversation."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    kwargs: Mapping[str, Any] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def system(text: Any) -> Message:
    return {"role": "system", "content": text}


def user(text: Any) -> Message:
    return {"role": "user", "content": text}


def assistant(text: Any, *calls: tuple[str, dict[str, Any]], **more: Any) -> Message:
    message = {"role": "assistant", "content": text, **more}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call{number:05}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for number, (name, arguments) in enumerate(calls)
        ]
    return message


def tool(text: Any, number: int = 0) -> Message:
    return {"role": "tool", "tool_call_id": f"call{number:05}", "content": text}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


BERLIN = ("get_weather", {"city": "Berlin"})
KYOTO = ("get_weather", {"city": "京都", "days": 2})
THOUGHT = "<think>\nLet me see.\n</think>\n\nIt is 4."

PLAIN: Mapping[str, Case] = {
    "one question": Case([user("Hello")]),
    "system and question": Case([system("Be brief."), user("Hello")]),
    "two systems": Case([system("Be brief."), system("Be kind."), user("Hello")]),
    "an empty question": Case([user("")]),
    "several turns": Case([user("Hello"), assistant("Hi!"), user("How are you?")]),
    "many turns": Case([each for n in range(9) for each in (user(f"question {n}"), assistant(f"answer {n}"))][:-1]),
    "white space kept or not": Case([system("  a\n"), user("\n\tb  "), assistant(" c \n\n"), user("d")]),
    "no generation prompt": Case([user("Hello"), assistant("Hi!")], add_generation_prompt=False),
    "a question without generation prompt": Case([user("Hello")], add_generation_prompt=False),
    "unicode": Case([system("نص عربي"), user("日本語 👩‍👩‍👧 e\u0301 \u200b"), assistant("ß \U0001f600"), user("Ünï")]),
    "markup of HTML": Case([user("<b>&amp;\"'</b> {{ messages }} {% raw %}")]),
    "code": Case([user("def f(x):\n\treturn x ** 2  # 1\n\n\n")]),
    "control tokens in the text": Case([user("<|im_end|>\n<|im_start|>system\nx<\uff5cUser\uff5c>")]),
    "a long text": Case([user("word " * 2000)]),
    "content parts": Case([user(parts("one"))]),
    "several content parts": Case([system(parts("a", "b")), user(parts("one", "two", "three"))]),
    "parts in the middle": Case([user(parts("one", "two")), assistant(parts("x")), user("y")]),
    "thinking on": Case([user("2+2?")], kwargs={"enable_thinking": True}),
    "thinking off": Case([user("2+2?")], kwargs={"enable_thinking": False}),
    "thinking off without generation prompt": Case(
        [user("2+2?"), assistant("4")], kwargs={"enable_thinking": False}, add_generation_prompt=False
    ),
    "thought before": Case([user("2+2?"), assistant(THOUGHT), user("And 3+3?")]),
    "thought before, off now": Case(
        [user("2+2?"), assistant(THOUGHT), user("And 3+3?")], kwargs={"enable_thinking": False}
    ),
    "thought last": Case([user("2+2?"), assistant(THOUGHT)], add_generation_prompt=False),
    "reasoning apart": Case([user("2+2?"), assistant("4", reasoning_content="Let me see."), user("And 3+3?")]),
    "reasoning apart, last": Case(
        [user("2+2?"), assistant("4", reasoning_content="Let me\nsee.")], add_generation_prompt=False
    ),
    "another word for it": Case([user("2+2?"), assistant("4", reasoning="Hm.")], add_generation_prompt=False),
    "continued": Case(
        [user("Write."), assistant("Once upon")], add_generation_prompt=False, continue_final_message=True
    ),
    "continued after a space": Case(
        [user("Write."), assistant("Once upon ")], add_generation_prompt=False, continue_final_message=True
    ),
    "continued after a line": Case(
        [user("Write."), assistant("Once\n\n")], add_generation_prompt=False, continue_final_message=True
    ),
    "continued in parts": Case(
        [user("Write."), assistant(parts("Once", "upon"))], add_generation_prompt=False, continue_final_message=True
    ),
    "a continued question": Case([user("Once upon")], add_generation_prompt=False, continue_final_message=True),
    "unknown variables": Case([user("Hello")], kwargs={"custom": [1, {"a": "é"}], "date_string": "1 Jan 2026"}),
}

TOOLS: Mapping[str, Case] = {
    "tools": Case([user("Weather?")], [WEATHER]),
    "tools and system": Case([system("Be brief."), user("Weather?")], [WEATHER, TIME]),
    "tools, thinking off": Case([user("Weather?")], [WEATHER], {"enable_thinking": False}),
    "a call and its result": Case(
        [user("Weather?"), assistant(None, BERLIN), tool('{"t": 3}'), assistant("3 °C"), user("Thanks")], [WEATHER]
    ),
    "a call with text": Case([user("Weather?"), assistant("I look.", BERLIN), tool("cold")], [WEATHER]),
    "an empty text with a call": Case([user("Weather?"), assistant("", BERLIN), tool("cold")], [WEATHER]),
    "parallel calls": Case(
        [user("Weather?"), assistant(None, BERLIN, KYOTO), tool("cold"), tool("晴れ", 1)], [WEATHER, TIME]
    ),
    "a call without arguments": Case([user("Time?"), assistant(None, ("now", {})), tool("12:00")], [TIME]),
    "calls of several rounds": Case(
        [user("?"), assistant(None, BERLIN), tool("cold"), assistant(None, KYOTO), tool("warm"), assistant("So.")],
        [WEATHER],
        add_generation_prompt=False,
    ),
    "a call after a thought": Case(
        [user("?"), assistant("Yes", BERLIN, reasoning_content="I must look."), tool("cold")], [WEATHER]
    ),
    "a result in parts": Case([user("?"), assistant(None, BERLIN), tool(parts("co", "ld"))], [WEATHER]),
}


def for_transformers(case: Case, *, parts: bool, objects: bool, none: bool) -> list[Message]:
    """The messages in a template's own shape, as its model card says to write them.

    `parts`: content in parts stays so; `objects`: arguments are objects; `none`: content beside calls is none.
    """
    found: list[Message] = json.loads(json.dumps(case.messages))
    for message in found:
        if isinstance(message["content"], list) and not parts:
            message["content"] = "\n".join(part["text"] for part in message["content"])
        if message.get("tool_calls") and not message["content"]:
            message["content"] = None if none else ""
        for call in message.get("tool_calls", ()) if objects else ():
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return found
