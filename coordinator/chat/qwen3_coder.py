"""Qwen3-Coder's tool calls: tags like XML, whose parameters become the arguments' JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from coordinator.chat.parser import Parser, Steps

Strings = Mapping[str, frozenset[str]]
"""By the name of each tool, which of its parameters are strings."""

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
"""The family's template shows earlier calls' values as Python writes them."""


def qwen3_coder(parser: Parser, strings: Strings) -> Steps[None]:
    """`<tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>`."""
    call_begin, begin = "<tool_call>", "<function="
    while marker := (yield from parser.until((call_begin, begin), parser.content)):
        parser.open(marker)
        if marker == call_begin:
            yield from parser.space()
        name = ""
        if marker == begin or (yield from parser.literal(begin)):
            name = yield from parser.name(">")
        if not name or not (yield from parser.literal(">")):
            yield from parser.give_up()
            continue
        parser.start_call(name)
        if (yield from _parameters(parser, strings.get(name))):
            yield from parser.close("</tool_call>")
        else:
            yield from parser.give_up()


def _parameters(parser: Parser, strings: frozenset[str] | None) -> Steps[bool]:
    """Reads parameters and the function's end. Returns whether that came. All are strings if `strings` is None."""
    before = "{"
    while True:
        yield from parser.space()
        tag = yield from parser.literal("<parameter=", "</function>")
        if tag == "</function>":
            parser.arguments("{}" if before == "{" else "}")
            parser.markup()
            return True
        key = (yield from parser.name(">")) if tag else ""
        if not key or not (yield from parser.literal(">")):
            return False
        parser.markup()
        parser.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        before = ", "
        if parser.char == "\n":
            yield from parser.advance()
        if not (yield from _value(parser, is_string=strings is None or key in strings)):
            return False


def _value(parser: Parser, *, is_string: bool) -> Steps[bool]:
    """Reads a parameter's value and end tag, with the line end before it. Returns whether that came."""
    ends = ("\n</parameter>", "</parameter>")
    if is_string:
        parser.arguments('"')
        end = yield from parser.until(ends, lambda char: parser.arguments(json.dumps(char, ensure_ascii=False)[1:-1]))
        if end:
            parser.arguments('"')
        return bool(end)
    chars: list[str] = []
    end = yield from parser.until(ends, chars.append)
    text = "".join(chars)
    parser.arguments(_json(text) if end else text)
    return bool(end)


def _json(text: str) -> str:
    """A value as JSON: itself if it is some, else a string."""
    text = _PYTHON_WORDS.get(text, text)
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
