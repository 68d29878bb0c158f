"""Answers of every family, cut in every way: the deltas together are the same, and no text is lost."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from coordinator.chat.calls import DEEPSEEK
from coordinator.chat.deltas import Content, Delta, Reasoning, ToolCallArguments, ToolCallStart
from coordinator.chat.families import TOOL_CALL_PARSERS, parser_for, require_tool_call_parser, tool_call_parser_of
from coordinator.chat.parser import NAME_CHARACTERS_MAX
from coordinator.detokenizer import Detokenizer
from coordinator.text import TextDecoder
from outrider.core.protocol.errors import InvalidRequestError
from tests.chat.conversations import WEATHER
from tests.chat.templates import template
from tests.coordinator.tokenizers import REAL

F = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"s": {"type": "string"}, "n": {}}}}}
TOOLS = [F, WEATHER]
THINKING = "{{ '</think>' }}"
CALLS_BEGIN, CALL_BEGIN, SEP = DEEPSEEK["calls begin"], DEEPSEEK["call begin"], DEEPSEEK["sep"]
CALL_END, CALLS_END = DEEPSEEK["call end"], DEEPSEEK["calls end"]


class Answer(NamedTuple):
    """What came of an answer."""

    content: str
    reasoning: str
    calls: Sequence[tuple[str, str]]
    """Names and arguments."""


def names() -> Iterator[str]:
    return map(str, itertools.count())


def parsed(pieces: Iterable[str], family: str | None, prompt: str = "", tools: Any = TOOLS) -> Answer:
    parser = parser_for(THINKING, tools, family=family, prompt=prompt, names=names())
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.push(piece)
    deltas += parser.finish()
    content = reasoning = ""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        match delta:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case ToolCallStart(index, call_id, name):
                assert (index, call_id.removeprefix("call_")) == (len(calls), str(len(calls)))
                calls.append((name, ""))
            case ToolCallArguments(index, text):
                assert index == len(calls) - 1
                calls[index] = calls[index][0], calls[index][1] + text
    return Answer(content, reasoning, calls)


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def fenced(*calls: tuple[str, str]) -> str:
    written = [f"{CALL_BEGIN}function{SEP}{name}\n```json\n{text}\n```{CALL_END}" for name, text in calls]
    return CALLS_BEGIN + "\n".join(written) + CALLS_END


A, B = '{"s": "a"}', '{"n": [1, {"x": null}]}'
ONE = '{"name": "f", "arguments": {"s": "a"}}'
TWO = '{"name": "get_weather", "arguments": {"n": [1, {"x": null}]}}'
BOTH = [("f", A), ("get_weather", B)]

CALLS: Mapping[str, tuple[str, str, Answer]] = {
    "hermes": ("hermes", hermes(ONE), Answer("", "", BOTH[:1])),
    "hermes, two": ("hermes", hermes(ONE, TWO), Answer("", "", BOTH)),
    "hermes, text around": ("hermes", f"a < b\n{hermes(ONE)}\n\nc ", Answer("a < bc ", "", BOTH[:1])),
    "hermes, thought": ("hermes", f"<think>\nhm\n</think>\n\n{hermes(ONE)}", Answer("", "hm", BOTH[:1])),
    "hermes, no end tag": ("hermes", f"<tool_call>{ONE}<tool_call>{TWO}", Answer("", "", BOTH)),
    "hermes, arguments first": (
        "hermes",
        hermes('{"arguments": {"s": "a"}, "name": "f"}'),
        Answer("", "", BOTH[:1]),
    ),
    "hermes, no arguments": ("hermes", hermes('{"name": "f"}'), Answer("", "", [("f", "{}")])),
    "hermes, id and type": (
        "hermes",
        hermes('{"id": 7, "type": "function", "name": "f", "arguments": {"s": "a"}, "id": [1]}'),
        Answer("", "", BOTH[:1]),
    ),
    "hermes, a tag in a string": (
        "hermes",
        hermes('{"name": "f", "arguments": {"s": "</tool_call>\\"<tool_call>"}}'),
        Answer("", "", [("f", '{"s": "</tool_call>\\"<tool_call>"}')]),
    ),
    "hermes, a name with escapes": ("hermes", hermes('{"name": "\\u0066"}'), Answer("", "", [("f", "{}")])),
    "hermes, not JSON": ("hermes", hermes("f(1)"), Answer(hermes("f(1)"), "", [])),
    "hermes, no name": ("hermes", hermes('{"arguments": {}}'), Answer(hermes('{"arguments": {}}'), "", [])),
    "hermes, arguments that are none": (
        "hermes",
        hermes('{"name": "f", "arguments": "x"}'),
        Answer(hermes('{"name": "f", "arguments": "x"}'), "", []),
    ),
    "hermes, a call after none": ("hermes", f"<tool_call>{{<tool_call>{ONE}", Answer("<tool_call>{", "", BOTH[:1])),
    "hermes, broken off in a name": ("hermes", '<tool_call>{"name": "f', Answer('<tool_call>{"name": "f', "", [])),
    "hermes, broken off in arguments": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"s": "a',
        Answer("", "", [("f", '{"s": "a')]),
    ),
    "hermes, wrong in arguments": (
        "hermes",
        hermes('{"name": "f", "arguments": {"s": oops}}'),
        Answer("oops}}\n</tool_call>", "", [("f", '{"s": ')]),
    ),
    "hermes, broken off in a tag": ("hermes", f"<tool_call>{ONE}</tool_c", Answer("</tool_c", "", BOTH[:1])),
    "qwen3_coder": (
        "qwen3_coder",
        'Look:\n<tool_call>\n<function=f>\n<parameter=s>\na "b"\n\nc\n</parameter>\n<parameter=n>\n'
        "[1, 2]\n</parameter>\n<parameter=other>\nTrue\n</parameter>\n"
        "<parameter=n2>\nno JSON\n</parameter>\n</function>\n</tool_call>",
        Answer("Look:", "", [("f", '{"s": "a \\"b\\"\\n\\nc", "n": [1, 2], "other": true, "n2": "no JSON"}')]),
    ),
    "qwen3_coder, two": (
        "qwen3_coder",
        "<tool_call>\n<function=f>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=unknown>\n<parameter=a>5</parameter>\n</function>\n</tool_call>",
        Answer("", "", [("f", "{}"), ("unknown", '{"a": "5"}')]),
    ),
    "qwen3_coder, a tag in a string": (
        "qwen3_coder",
        "<function=f><parameter=s></function>\n</para\n</parameter></function>",
        Answer("", "", [("f", '{"s": "</function>\\n</para"}')]),
    ),
    "qwen3_coder, broken off": (
        "qwen3_coder",
        "<tool_call><function=f><parameter=s>\nab",
        Answer("", "", [("f", '{"s": "ab')]),
    ),
    "qwen3_coder, broken off in a number": (
        "qwen3_coder",
        "<tool_call><function=f><parameter=n>\n12",
        Answer("", "", [("f", '{"n": 12')]),
    ),
    "qwen3_coder, no function": ("qwen3_coder", "<tool_call>f</tool_call>", Answer("<tool_call>f</tool_call>", "", [])),
    "qwen3_coder, wrong between": (
        "qwen3_coder",
        "<function=f>\n<parameter=s>\na\n</parameter>\noops</function>",
        Answer("oops</function>", "", [("f", '{"s": "a"')]),
    ),
    "llama3_json": ("llama3_json", '{"name": "f", "parameters": {"s": "a"}}', Answer("", "", BOTH[:1])),
    "llama3_json, tag": (
        "llama3_json",
        'Well <|python_tag|>{"name": "f", "parameters": {"s": "a"}}',
        Answer("Well", "", BOTH[:1]),
    ),
    "llama3_json, two": ("llama3_json", f"{ONE}; {TWO}", Answer("", "", BOTH)),
    "llama3_json, two lines": ("llama3_json", f"\n{ONE}\n{TWO}\n", Answer("", "", BOTH)),
    "llama3_json, type first": (
        "llama3_json",
        '{"type": "function", "name": "f", "parameters": {"s": "a"}}',
        Answer("", "", BOTH[:1]),
    ),
    "llama3_json, an answer in JSON": ("llama3_json", '{"answer": [1]}', Answer('{"answer": [1]}', "", [])),
    "llama3_json, no tool of ours": (
        "llama3_json",
        '{"name": "Ada", "parameters": {}}',
        Answer('{"name": "Ada", "parameters": {}}', "", []),
    ),
    "llama3_json, JSON later": ("llama3_json", f"So: {ONE}", Answer(f"So: {ONE}", "", [])),
    "llama3_json, code": (
        "llama3_json",
        '<|python_tag|>f.call(s="a")',
        Answer('<|python_tag|>f.call(s="a")', "", []),
    ),
    "mistral": ("mistral", f"[TOOL_CALLS] [{ONE}]", Answer("", "", BOTH[:1])),
    "mistral, two": ("mistral", f"Sure.[TOOL_CALLS][{ONE}, {TWO}]", Answer("Sure.", "", BOTH)),
    "mistral, ids": (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"s": "a"}, "id": "abc123def"}]',
        Answer("", "", BOTH[:1]),
    ),
    "mistral, by name": ("mistral", f"[TOOL_CALLS]f[ARGS]{A}[TOOL_CALLS]get_weather[ARGS]{B}", Answer("", "", BOTH)),
    "mistral, by name with an id": ("mistral", f"[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{A}", Answer("", "", BOTH[:1])),
    "mistral, by name alone": ("mistral", f"[TOOL_CALLS]f{A}", Answer("", "", BOTH[:1])),
    "mistral, none": ("mistral", "[TOOL_CALLS] [1]", Answer("[TOOL_CALLS] [1]", "", [])),
    "mistral, an empty list": ("mistral", "[TOOL_CALLS][]", Answer("[TOOL_CALLS][]", "", [])),
    "mistral, broken off": ("mistral", f"[TOOL_CALLS][{ONE}, ", Answer(", ", "", BOTH[:1])),
    "deepseek_v3": ("deepseek_v3", fenced(("f", A)), Answer("", "", BOTH[:1])),
    "deepseek_v3, two": ("deepseek_v3", f"I look.\n{fenced(*BOTH)}", Answer("I look.", "", BOTH)),
    "deepseek_v3, thought": ("deepseek_v3", f"<think>\n</think>\n\n{fenced(('f', A))}", Answer("", "", BOTH[:1])),
    "deepseek_v3, as V3.1": (
        "deepseek_v3",
        f"{CALLS_BEGIN}{CALL_BEGIN}f{SEP}{A}{CALL_END}{CALL_BEGIN}get_weather{SEP}{B}{CALL_END}{CALLS_END}",
        Answer("", "", BOTH),
    ),
    "deepseek_v3, no ends": (
        "deepseek_v3",
        f"{CALL_BEGIN}f{SEP}{A}{CALL_BEGIN}get_weather{SEP}{B}",
        Answer("", "", BOTH),
    ),
    "deepseek_v3, none": ("deepseek_v3", f"{CALLS_BEGIN}oops", Answer(f"{CALLS_BEGIN}oops", "", [])),
    "deepseek_v3, no JSON": (
        "deepseek_v3",
        f"{CALL_BEGIN}function{SEP}f\n```python\n1\n```{CALL_END}",
        Answer(f"{CALL_BEGIN}function{SEP}f\n```python\n1\n```{CALL_END}", "", []),
    ),
}

THOUGHTS: Mapping[str, tuple[str, str, Answer]] = {
    "thought": ("", "<think>\na <b>\n c\n</think>\n\nd\n", Answer("d\n", "a <b>\n c", [])),
    "nothing thought": ("", "<think>\n\n</think>\n\nd", Answer("d", "", [])),
    "no thought": ("", " d </think> e", Answer(" d </think> e", "", [])),
    "a tag later": ("", "d <think>e</think>", Answer("d <think>e</think>", "", [])),
    "begun by the prompt": ("x<think>\n", "\na\n</think>\nd", Answer("d", "a", [])),
    "begun by both": ("x<think>\n", "<think>\na</think>d", Answer("d", "a", [])),
    "ended by the prompt": ("<think>\n\n</think>\n\n", "d", Answer("d", "", [])),
    "no end": ("", "<think>a ", Answer("", "a ", [])),
    "a part of a tag": ("", "<think>a</thi", Answer("", "a</thi", [])),
    "a part of the first tag": ("", "<thin", Answer("<thin", "", [])),
    "nothing": ("", "", Answer("", "", [])),
    "white space": ("", " \n", Answer(" \n", "", [])),
}


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = [0, *sorted(places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def every_cut(text: str) -> Iterable[list[str]]:
    """The text whole, by the character, in two at each place, in three at random places, and with empty pieces."""
    yield [text]
    yield list(text)
    yield from (cut(text, [place]) for place in range(len(text) + 1))
    chance = random.Random(len(text))
    for _ in range(20):
        yield cut(text, chance.choices(range(len(text) + 1), k=chance.randint(2, 9)))


@pytest.mark.parametrize("title", CALLS)
def test_calls_however_they_are_cut(title: str) -> None:
    family, text, expected = CALLS[title]
    for pieces in every_cut(text):
        assert parsed(pieces, family) == expected, pieces


@pytest.mark.parametrize("title", THOUGHTS)
def test_thoughts_however_they_are_cut(title: str) -> None:
    prompt, text, expected = THOUGHTS[title]
    for pieces in every_cut(text):
        assert parsed(pieces, None, prompt) == expected, pieces


@pytest.mark.parametrize(
    ("family", "text"), [("hermes", f"<tool_call>{ONE[:16]}"), ("mistral", "a[TOOL_CALLS]f[ARGS]{}")]
)
def test_a_short_text_in_all_of_its_cuts(family: str, text: str) -> None:
    text = text[-10:]
    expected = parsed([text], family)
    places = range(1, len(text))
    for chosen in itertools.product([False, True], repeat=len(places)):
        assert parsed(cut(text, itertools.compress(places, chosen)), family) == expected


PIECES = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"),
    *("<function=f>", "<parameter=s>", "</parameter>", "</function>", "```json", '{"name": "f", ', '"arguments": '),
    *(CALLS_BEGIN, CALL_BEGIN, SEP, CALL_END, CALLS_END, ONE, TWO, A, "f", "<", "</", "[", "]", "{", "}", '"'),
    *(";", ",", " ", "\n", "é", "\\"),
]
"""What looks like markup, in no order."""


@settings(max_examples=60)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from(sorted(TOOL_CALL_PARSERS)), st.data())
def test_no_text_is_lost_and_no_cut_matters(words: list[str], family: str, data: st.DataObject) -> None:
    text = "".join(words)
    whole = parsed([text], family)
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    assert parsed(cut(text, places), family) == parsed(list(text), family) == whole
    if not whole.calls and not text.lstrip().startswith("<think>"):
        assert whole.content == text, "what is no markup is content as it is"
    letters = iter(text)
    assert all(letter in letters for letter in "".join(whole.content.split())), "content comes in its order"


@settings(max_examples=40)
@given(
    st.dictionaries(st.text(max_size=4), st.none() | st.floats(allow_nan=False) | st.text(max_size=6), max_size=4),
    st.sampled_from(["hermes", "llama3_json", "mistral", "deepseek_v3"]),
    st.booleans(),
)
def test_arguments_come_out_as_they_were_written(arguments: dict[str, Any], family: str, ascii_only: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    call = f'{{"name": "f", "arguments": {written}}}'
    text = {
        "hermes": hermes(call, call),
        "llama3_json": f"{call}; {call}",
        "mistral": f"[TOOL_CALLS][{call}, {call}]",
        "deepseek_v3": fenced(("f", written), ("f", written)),
    }[family]
    if "Infinity" not in written:
        assert parsed([text], family) == parsed(list(text), family) == Answer("", "", [("f", written)] * 2)


@pytest.mark.parametrize("name", REAL)
def test_published_vocabularies_show_their_markup(name: str) -> None:
    """Its tokens are no special ones there, so the text edge leaves them in."""
    family = {"qwen3": "hermes", "deepseek_v3": "deepseek_v3"}[name]
    if not REAL[name].is_file():
        pytest.skip(f"{REAL[name]} is not there")
    tokenizer = Tokenizer.from_file(str(REAL[name]))
    written = '{"s": "é 👩‍👩‍👧 日本"}'
    call = hermes(f'{{"name": "f", "arguments": {written}}}') if family == "hermes" else fenced(("f", written))
    token_ids = tokenizer.encode(f"<think>\nHm.\n</think>\n\nSo ß:\n{call}", add_special_tokens=False).ids
    decoder = TextDecoder(Detokenizer(tokenizer).after([]), ())
    pieces = [*map(decoder.push, token_ids), decoder.finish()]
    assert parsed(pieces, family) == Answer("So ß:", "Hm.", [("f", written)])


def test_arguments_stream() -> None:
    parser = parser_for(THINKING, TOOLS, family="hermes", names=iter("x"))
    assert parser.push('<tool_call>\n{"name": "f"') == []
    assert parser.push(', "arguments": {"s": "a') == [ToolCallStart(0, "call_x", "f"), ToolCallArguments(0, '{"s": "a')]
    assert parser.push("b") == [ToolCallArguments(0, "b")]
    assert parser.push('"}}') == [ToolCallArguments(0, '"}')]


def test_content_and_thoughts_stream() -> None:
    parser = parser_for(THINKING, TOOLS, family="hermes", names=names())
    assert parser.push("<think>\nI") == [Reasoning("I")]
    assert parser.push(" see\n</th") == [Reasoning(" see")]
    assert parser.push("ink>\n\nSo <") == [Content("So")]
    assert parser.push("tool") == []
    assert parser.push("box>.") == [Content(" <toolbox>.")]
    assert parser.finish() == []


def test_without_tools_calls_are_content() -> None:
    text = f"a {hermes(ONE)} "
    assert parsed([text], "hermes", tools=None) == Answer(text, "", [])


def test_a_name_has_an_end() -> None:
    """An answer that begins like a call and never comes to its name is not held back for ever."""
    parser = parser_for(THINKING, TOOLS, family="hermes", names=names())
    parser.push('<tool_call>{"name": "')
    assert parser.push("x" * (NAME_CHARACTERS_MAX + 1)) != []


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("qwen3", "hermes"),
        ("deepseek_v3", "deepseek_v3"),
        ("chatml", "hermes"),
        ("llama3", "llama3_json"),
        ("mistral", "mistral"),
    ],
)
def test_a_template_tells_its_family(name: str, family: str) -> None:
    assert tool_call_parser_of(template(name).source()) == family


def test_a_template_of_no_family_tells_none() -> None:
    assert tool_call_parser_of("{{ messages }}") is None
    assert require_tool_call_parser("{{ messages }}", "mistral") == "mistral"
    assert require_tool_call_parser("<tool_call>") == "hermes"
    with pytest.raises(InvalidRequestError, match=r"tools: .* --tool-call-parser qwen3_coder"):
        require_tool_call_parser("{{ messages }}")
    assert parsed(["a<tool_call>"], None) == Answer("a<tool_call>", "", [])


def test_ids_are_as_the_family_wants_them() -> None:
    (call, *_) = parser_for("", TOOLS, family="mistral", names=iter(["0123456789ab" * 2])).push("[TOOL_CALLS]f{")
    assert isinstance(call, ToolCallStart)
    assert (len(call.id), call.id.isalnum()) == (9, True)
    parser = parser_for("", TOOLS, family="hermes", names=names())
    (call, *_) = parser.push('<tool_call>{"name": "f", "arguments": {')
    assert isinstance(call, ToolCallStart)
    assert call.id.startswith("call_")
