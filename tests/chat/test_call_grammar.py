"""Calls that are held to schemas: in every family's syntax, what a grammar allows is what the parser reads as calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from coordinator.chat.call_grammar import CallGrammar
from coordinator.chat.call_syntax import CALL_MARKUP, CALL_SYNTAXES
from coordinator.chat.calls import DEEPSEEK
from coordinator.chat.families import tool_call_parser_of
from coordinator.chat.lark import WHITESPACE
from coordinator.chat.reasoning import TAGS, behind_reasoning
from coordinator.detokenizer import Detokenizer
from outrider.core.protocol.errors import InvalidRequestError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.grammar import compiled
from tests.chat.templates import template as published
from tests.chat.test_parser import Answer, parsed
from tests.coordinator.tokenizers import BUNDLED, REAL


def tool(name: str, *, strict: bool | None = None, **parameters: Any) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters, **({} if strict is None else {"strict": strict})}
    return {"type": "function", "function": function}


CITY = {"type": "object", "properties": {"city": {"enum": ["Zürich", "Oslo"]}}, "required": ["city"]}
WEATHER = tool("weather", **CITY, additionalProperties=False)
NODE_SCHEMA = {"properties": {"left": {"$ref": "#/$defs/Node"}}, "additionalProperties": False}
TREE_SCHEMA: dict[str, Any] = {"$ref": "#/$defs/Node", "$defs": {"Node": NODE_SCHEMA}}
TREE = tool("tree", **TREE_SCHEMA)
TOOLS = [WEATHER, TREE]
OSLO, NODE = '{"city": "Oslo"}', '{"left": {"left": {}}}'
BOTH = [("weather", OSLO), ("tree", NODE)]
SEP, FENCE = DEEPSEEK["sep"], "```"


def fenced(name: str, arguments: str) -> str:
    call = f"function{SEP}{name}\n{FENCE}json\n{arguments}\n{FENCE}"
    return DEEPSEEK["call begin"] + call + DEEPSEEK["call end"]


def v31(name: str, arguments: str) -> str:
    return DEEPSEEK["call begin"] + name + SEP + arguments + DEEPSEEK["call end"]


def written(family: str, template: str, calls: Sequence[tuple[str, str]]) -> str:
    """Calls as models write them."""
    key = "parameters" if family == "llama3_json" else "arguments"
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
    match family, template:
        case "hermes", _:
            return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)
        case "llama3_json", _:
            return "; ".join(objects)
        case "mistral", "[TOOL_CALLS] [":
            return f"[TOOL_CALLS] [{', '.join(objects)}]"
        case "mistral", "[TOOL_CALLS]":
            return f"[TOOL_CALLS][{', '.join(objects)}]"
        case "mistral", _:
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)
        case _, "```json":
            return DEEPSEEK["calls begin"] + "\n".join(fenced(*call) for call in calls) + DEEPSEEK["calls end"]
        case _:
            return DEEPSEEK["calls begin"] + "".join(v31(*call) for call in calls) + DEEPSEEK["calls end"]


KINDS = [
    ("hermes", ""),
    ("llama3_json", ""),
    ("mistral", "[TOOL_CALLS] ["),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] [ARGS]"),
    ("deepseek_v3", "```json"),
    ("deepseek_v3", ""),
]


class Vocabulary:
    """The bundled one, with markup as tokens of their own or without."""

    def __init__(self, markup: frozenset[str], path: Path = BUNDLED, eos: str = "<|endoftext|>") -> None:
        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.add_special_tokens([AddedToken(each, special=True) for each in sorted(markup)])
        self.eos = self.tokenizer.token_to_id(eos)
        self.compiler = LLTokenizer(self.tokenizer.to_str(), eos_token=self.eos)
        self.token_ids = Detokenizer(self.tokenizer).added_ids(CALL_MARKUP | {tag for tags in TAGS for tag in tags})

    def allows(self, grammar: Grammar, text: str) -> bool:
        """Whether it is all of an answer."""
        make = {
            GrammarKind.LARK: LLMatcher.grammar_from_lark,
            GrammarKind.JSON_SCHEMA: LLMatcher.grammar_from_json_schema,
            GrammarKind.REGEX: LLMatcher.grammar_from_regex,
        }[grammar.kind]
        matcher = LLMatcher(self.compiler, make(grammar.source))
        assert not matcher.is_error(), matcher.get_error()
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


@cache
def vocabulary(has_tokens: bool) -> Vocabulary:
    return Vocabulary(CALL_MARKUP | {"<think>", "</think>"} if has_tokens else frozenset())


@pytest.fixture(params=[False, True], ids=["text", "tokens"])
def words(request: pytest.FixtureRequest) -> Vocabulary:
    return vocabulary(request.param)


def calls_of(
    words: Vocabulary, family: str, template: str, tools: Sequence[Any] = TOOLS, *, parallel: bool = True
) -> CallGrammar:
    return CallGrammar(family, template, tools, words.token_ids, parallel=parallel)


@pytest.mark.parametrize(("family", "template"), KINDS)
def test_a_forced_call_is_one_that_the_parser_reads(words: Vocabulary, family: str, template: str) -> None:
    grammar = calls_of(words, family, template).forced(TOOLS)
    for call in BOTH:
        text = written(family, template, [call])
        assert words.allows(grammar, text)
        assert parsed([text], family, tools=TOOLS) == Answer("", "", [call])
        assert not words.allows(grammar, f"So: {text}")
    for wrong in ("", "Hello", "{}", written(family, template, [])):
        assert not words.allows(grammar, wrong)
    for call in (("weather", "{}"), ("weather", NODE), ("tree", OSLO), ("other", "{}"), ("weather", '"Oslo"')):
        assert not words.allows(grammar, written(family, template, [call]))


@pytest.mark.parametrize(("family", "template"), KINDS)
def test_several_calls_only_where_they_may_be_and_the_family_writes_them(
    words: Vocabulary, family: str, template: str
) -> None:
    text = written(family, template, BOTH)
    several = calls_of(words, family, template).forced(TOOLS)
    assert words.allows(several, text) is (family != "llama3_json")
    if family != "llama3_json":
        assert parsed([text], family, tools=TOOLS) == Answer("", "", BOTH)
    one = calls_of(words, family, template, parallel=False).forced(TOOLS)
    assert not words.allows(one, text)
    assert words.allows(one, written(family, template, BOTH[:1]))


@pytest.mark.parametrize(("family", "template"), KINDS)
def test_a_named_function_is_the_only_one(words: Vocabulary, family: str, template: str) -> None:
    grammar = calls_of(words, family, template).forced([TREE])
    assert words.allows(grammar, written(family, template, BOTH[1:]))
    assert not words.allows(grammar, written(family, template, BOTH[:1]))


@pytest.mark.parametrize(("family", "template"), KINDS)
def test_calls_of_strict_tools_keep_to_their_schema_and_text_is_free(
    words: Vocabulary, family: str, template: str
) -> None:
    tools = [tool("weather", strict=True, **CITY), TREE]
    grammar = calls_of(words, family, template, tools).allowed([words.eos])
    for text in ("", "Hello {} é 🙂\n<tool", 'x {"name": "weather"'):
        assert words.allows(grammar, text)
    before = "" if family == "llama3_json" else "So:\n"
    assert words.allows(grammar, before + written(family, template, BOTH[:1]))
    assert words.allows(grammar, before + written(family, template, [("tree", '{"x": 1}')]))
    assert not words.allows(grammar, before + written(family, template, [("weather", "{}")]))


@pytest.mark.parametrize(("family", "template"), KINDS)
def test_an_answer_that_calls_nothing_has_the_form_that_was_asked_for(
    words: Vocabulary, family: str, template: str
) -> None:
    calls = calls_of(words, family, template)
    answers = [
        (Grammar(GrammarKind.JSON_SCHEMA, json.dumps(CITY)), OSLO),
        (Grammar(GrammarKind.REGEX, r"a/b\/c|\n"), "a/b/c"),
        (Grammar(GrammarKind.LARK, 'start: x "}"\nx: "{"'), "{}"),
    ]
    if family == "llama3_json":
        with pytest.raises(InvalidRequestError, match="tools: nothing tells this model's calls"):
            calls.or_else(answers[0][0])
        return
    for answer, text in answers:
        grammar = calls.or_else(answer)
        assert words.allows(grammar, text)
        assert words.allows(grammar, written(family, template, BOTH[:1]))
        assert not words.allows(grammar, "Hello")
        assert not words.allows(grammar, text + text)


@pytest.mark.parametrize("name", ["a.b", "mcp__x-y", "größe", "ns:f/g"])
def test_names_and_tools_without_parameters(words: Vocabulary, name: str) -> None:
    bare = {"type": "function", "function": {"name": name}}
    for family in CALL_SYNTAXES:
        grammar = calls_of(words, family, "", [bare]).forced([bare])
        assert words.allows(grammar, written(family, "[TOOL_CALLS]" if family == "mistral" else "", [(name, "{}")]))
        assert not words.allows(grammar, written(family, "", [(name, '{"x": 1}')]))


def test_white_space_in_arguments_is_bounded_as_in_other_json() -> None:
    assert WHITESPACE == compiled.WHITESPACE
    words = vocabulary(True)
    asked = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(CITY))
    answers = calls_of(words, "hermes", "").or_else(asked)
    own = {**CITY, "x-guidance": {"whitespace_flexible": False}}
    assert words.allows(answers, OSLO.replace(" ", " " * 32))
    assert not words.allows(answers, OSLO.replace(" ", " " * 33))
    for grammar, num_spaces in (
        (calls_of(words, "hermes", "").forced([WEATHER]), 32),
        (calls_of(words, "hermes", "").forced([tool("weather", **own)]), 0),
    ):
        for num in (num_spaces, num_spaces + 1):
            text = written("hermes", "", [("weather", OSLO.replace(" ", " " * num))])
            assert words.allows(grammar, text) is (num == num_spaces)


def test_what_cannot_be_held_to_a_schema_is_refused() -> None:
    words = vocabulary(True)
    with pytest.raises(InvalidRequestError, match="tools: calls as qwen3_coder models write them"):
        calls_of(words, "qwen3_coder", "")
    for kind in ("array", ["object", "null"]):
        with pytest.raises(InvalidRequestError, match="tools: the parameters of f must be a schema of type 'object'"):
            calls_of(words, "hermes", "", [tool("f", type=kind)]).forced([tool("f", type=kind)])


@pytest.mark.parametrize(
    ("prompt", "begins_after", "allowed", "refused"),
    [
        (
            "Hi",
            "",
            ["7", "<think>é\n</think>\n\n7", "<think></think>7"],
            ["x7", "<think>7", "</think>7", "<think></think>x"],
        ),
        ("Hi<think>\n", "</think>", ["7", "\n\n7"], ["x7", "<think></think>7"]),
        ("Hi<think>\n\n</think>\n\n", "", ["7"], ["<think></think>7", "\n7"]),
    ],
)
def test_a_grammar_begins_behind_the_reasoning_if_the_prompt_leaves_any(
    words: Vocabulary, prompt: str, begins_after: str, allowed: Sequence[str], refused: Sequence[str]
) -> None:
    for kind, source in (("regex", "[0-9]"), ("json_schema", '{"type": "integer"}'), ("lark", 'start: "7"')):
        asked = Grammar(GrammarKind(kind), source)
        found = behind_reasoning(asked, TAGS[0], prompt, token_ids=words.token_ids, eos_token_ids=[words.eos])
        assert found.begins_after == begins_after
        assert [text for text in (*allowed, *refused) if words.allows(found, text)] == allowed
        elsewhere = Grammar(GrammarKind(kind), source, "=")
        assert behind_reasoning(elsewhere, TAGS[0], prompt, token_ids={}, eos_token_ids=[]) == elsewhere


@pytest.mark.parametrize(
    ("name", "family", "eos"),
    [("qwen3", "hermes", "<|im_end|>"), ("deepseek_v3", "deepseek_v3", "<\uff5cend\u2581of\u2581sentence\uff5c>")],
)
def test_published_models_write_calls_as_their_templates_show_them(name: str, family: str, eos: str) -> None:
    shown = published(name)
    words = Vocabulary(frozenset(), REAL[name], eos)
    source = shown.source(TOOLS)
    assert tool_call_parser_of(source) == family
    grammar = calls_of(words, family, source).forced(TOOLS)
    calls = [{"type": "function", "function": {"name": key, "arguments": text}} for key, text in BOTH]
    question: dict[str, Any] = {"role": "user", "content": "x"}
    told = TOOLS if name == "qwen3" else None  # the other's template has no place for tools
    prompt = shown.render([question], told)
    answered = {"role": "assistant", "content": "", "tool_calls": calls}
    whole = shown.render([question, answered], told, add_generation_prompt=False)
    answer = whole.removeprefix(prompt).removeprefix("<think>\n\n</think>\n\n").removesuffix("\n").removesuffix(eos)
    assert parsed([answer], family, tools=TOOLS).calls == BOTH
    assert words.allows(grammar, answer)
    if name == "qwen3":
        behind = behind_reasoning(grammar, TAGS[0], prompt, token_ids=words.token_ids, eos_token_ids=[words.eos])
        assert behind.begins_after == ""
        for thought in ("", "<think>\nhm <tool_call>\n</think>\n\n"):
            assert words.allows(behind, thought + answer)
        quick = shown.render([question], TOOLS, chat_template_kwargs={"enable_thinking": False})
        assert behind_reasoning(grammar, TAGS[0], quick, token_ids={}, eos_token_ids=[]) == grammar
