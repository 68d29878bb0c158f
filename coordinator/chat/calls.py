"""Tool calls: how each family of models writes them, as a grammar for `Parser`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from coordinator.chat.parser import Parser, Steps

_CALL_KEYS = frozenset({"name", "arguments", "parameters", "id", "type"})
"""What may stand in a call that is a JSON object; anything else is not a call but an answer in JSON."""

_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})

DEEPSEEK: Final = {
    name: "<\uff5ctool\u2581{}\uff5c>".format(name.replace(" ", "\u2581"))
    for name in ("calls begin", "calls end", "call begin", "call end", "sep")
}
"""DeepSeek's tokens by what they mark, in which bars are fullwidth and spaces are blocks."""


def hermes(parser: Parser) -> Steps[None]:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen write it."""
    while marker := (yield from parser.until(("<tool_call>",), parser.content)):
        parser.open(marker)
        yield from parser.space()
        if (yield from _json_call(parser)):
            yield from parser.close("</tool_call>")
        else:
            yield from parser.give_up()


def llama3_json(parser: Parser, names: Collection[str]) -> Steps[None]:
    """`{"name": …, "parameters": {…}}` at the beginning of the answer or after `<|python_tag|>`; several with `;`.

    No markup need tell that it is a call, so `name` must be one of `names`.
    """
    while True:
        yield from parser.space()
        if (yield from _json_call(parser, names)):
            yield from parser.close(";")
            continue
        yield from parser.give_up()
        marker = yield from parser.until(("<|python_tag|>",), parser.content)
        if not marker:
            return
        parser.open(marker)


def mistral(parser: Parser) -> Steps[None]:
    """`[TOOL_CALLS]` and `[{"name": …, "arguments": {…}}, …]`, or for each call `[TOOL_CALLS]name[ARGS]{…}`."""
    while marker := (yield from parser.until(("[TOOL_CALLS]",), parser.content)):
        parser.open(marker)
        yield from parser.space()
        is_array = yield from parser.literal("[")
        if (yield from (_json_calls(parser) if is_array else _named_call(parser))):
            parser.markup()
        else:
            yield from parser.give_up()


def deepseek_v3(parser: Parser) -> Steps[None]:
    """`function<sep>name` and the arguments in a block of code, as V3 and R1 write it, or `name<sep>{…}`, as V3.1 does,
    each between tokens of its own."""
    begin = DEEPSEEK["call begin"]
    while marker := (yield from parser.until((DEEPSEEK["calls begin"], begin), parser.content)):
        parser.open(marker)
        if marker != begin:
            yield from parser.space()
        if (marker == begin or (yield from parser.literal(begin))) and (yield from _deepseek_call(parser)):
            yield from parser.close(DEEPSEEK["call end"], DEEPSEEK["calls end"])
        else:
            yield from parser.give_up()


def _json_call(parser: Parser, names: Collection[str] | None = None) -> Steps[bool]:
    """Reads a call that is a JSON object. Returns whether it was one to its end."""
    name = early = ""
    is_started = False
    if not (yield from parser.literal("{")):
        return False
    while True:
        yield from parser.space()
        key = yield from parser.json_string()
        yield from parser.space()
        if key not in _CALL_KEYS or not (yield from parser.literal(":")):
            return False
        yield from parser.space()
        if key == "name" and not name:
            name = yield from parser.json_string()
            if not name or (names is not None and name not in names):
                return False
        elif key in _ARGUMENT_KEYS and not is_started and not early:
            if parser.char != "{":
                return False
            if name:
                parser.start_call(name)
                is_started = True
                if not (yield from parser.json_arguments()):
                    return False
            else:  # they stand before the name that they are for
                early = yield from parser.json_text()
                if not early:
                    return False
        elif not (yield from parser.json_text()):
            return False
        yield from parser.space()
        if (yield from parser.literal("}")):
            break
        if not (yield from parser.literal(",")):
            return False
    if not name:
        return False
    if not is_started:
        parser.start_call(name)
        parser.arguments(early or "{}")
    parser.markup()
    return True


def _json_calls(parser: Parser) -> Steps[bool]:
    """Reads calls up to the end of an array."""
    while True:
        yield from parser.space()
        if not (yield from _json_call(parser)):
            return False
        yield from parser.space()
        if not (yield from parser.literal(",")):
            return bool((yield from parser.literal("]")))


def _named_call(parser: Parser) -> Steps[bool]:
    name = yield from parser.name("[{")
    if (yield from parser.literal("[CALL_ID]", "[ARGS]")) == "[CALL_ID]":
        yield from parser.name("[")
        yield from parser.literal("[ARGS]")
    yield from parser.space()
    if not name or parser.char != "{":
        return False
    parser.start_call(name)
    return (yield from parser.json_arguments())


def _deepseek_call(parser: Parser) -> Steps[bool]:
    name = yield from parser.name("<")
    if not (yield from parser.literal(DEEPSEEK["sep"])):
        return False
    is_fenced = parser.char != "{"
    if is_fenced:
        name = yield from parser.name("\n")
        yield from parser.space()
        yield from parser.literal("```json")
        yield from parser.space()
    if not name or parser.char != "{":
        return False
    parser.start_call(name)
    if not (yield from parser.json_arguments()):
        return False
    if is_fenced:
        yield from parser.close("```")
    return True
