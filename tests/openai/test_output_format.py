"""Forms of an answer as bodies ask for them: which grammar each becomes, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from coordinator.openai.api_error import ApiError, api_error
from coordinator.openai.body import Body
from coordinator.openai.chat_body import ChatBody
from coordinator.openai.completion import CompletionBody
from coordinator.openai.responses_body import ResponsesBody
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from tests.openai.test_bodies import read

SCHEMA = {"type": "object", "properties": {"é": {"type": "string"}, "a": {"type": "integer"}}}
SOURCE = '{"type": "object", "properties": {"é": {"type": "string"}, "a": {"type": "integer"}}}'
ANY_OBJECT = '{"type": "object"}'
LARK = 'start: "a" | "b"'

FORMATS: list[tuple[dict[str, Any], GrammarKind, str, str]] = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
        GrammarKind.JSON_SCHEMA,
        SOURCE,
        "response_format.json_schema",
    ),
    ({"response_format": {"type": "json_object"}}, GrammarKind.JSON_SCHEMA, ANY_OBJECT, "response_format"),
    ({"structured_outputs": {"json": SCHEMA}}, GrammarKind.JSON_SCHEMA, SOURCE, "structured_outputs.json"),
    ({"structured_outputs": {"json": "true"}}, GrammarKind.JSON_SCHEMA, "true", "structured_outputs.json"),
    (
        {"structured_outputs": {"json_object": True, "disable_any_whitespace": False}},
        GrammarKind.JSON_SCHEMA,
        ANY_OBJECT,
        "structured_outputs.json_object",
    ),
    ({"structured_outputs": {"regex": "a+"}}, GrammarKind.REGEX, "a+", "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, GrammarKind.REGEX, "a|b", "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": LARK}}, GrammarKind.LARK, LARK, "structured_outputs.grammar"),
    ({"guided_json": SCHEMA}, GrammarKind.JSON_SCHEMA, SOURCE, "guided_json"),
    ({"guided_regex": "a+"}, GrammarKind.REGEX, "a+", "guided_regex"),
    ({"guided_choice": ["ü", "x.y"]}, GrammarKind.REGEX, r"ü|x\.y", "guided_choice"),
    ({"guided_grammar": LARK}, GrammarKind.LARK, LARK, "guided_grammar"),
]


@pytest.mark.parametrize(("fields", "kind", "source", "name"), FORMATS)
async def test_a_form_becomes_a_grammar_whose_faults_are_told_by_its_field(
    fields: dict[str, Any], kind: GrammarKind, source: str, name: str
) -> None:
    for body_kind in (ChatBody, CompletionBody):
        body = await read(body_kind, **fields)
        assert body.options().sampling.grammar == Grammar(kind, source)
        error = InvalidRequestError([FieldViolation(f"sampling.grammar.{kind}", "is odd")])
        assert api_error(error, body.names).body["error"] | {"code": 0} == {
            "message": f"{name}: is odd",
            "type": "invalid_request_error",
            "param": name,
            "code": 0,
        }


@pytest.mark.parametrize(
    ("text_format", "source"),
    [
        ({"type": "json_schema", "name": "n", "strict": True, "description": "d", "schema": SCHEMA}, SOURCE),
        ({"type": "json_object"}, ANY_OBJECT),
    ],
)
async def test_the_form_of_a_response_is_that_of_its_text(text_format: dict[str, Any], source: str) -> None:
    body = await read(ResponsesBody, text={"format": text_format, "verbosity": None})
    assert body.options().sampling.grammar == Grammar(GrammarKind.JSON_SCHEMA, source)
    assert body.names["grammar"].startswith("text.format")
    assert (await read(ResponsesBody, guided_regex="a")).options().sampling.grammar == Grammar(GrammarKind.REGEX, "a")


async def test_plain_text_asks_for_nothing() -> None:
    nothing: list[tuple[type[Body], dict[str, Any]]] = [
        (ChatBody, {"response_format": {"type": "text"}}),
        (ChatBody, {"structured_outputs": {}}),
        (CompletionBody, {"structured_outputs": {"json_object": False, "regex": None}, "guided_json": None}),
        (ResponsesBody, {"text": {"format": {"type": "text"}}}),
        (ResponsesBody, {"text": {}}),
    ]
    for kind, fields in nothing:
        body = await read(kind, **fields)
        assert body.options().sampling.grammar is None


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "grammar"}}, "response_format.type", "'grammar'; 'text', 'json_object'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "response_format.json_schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format", "schema"),
        ({"response_format": {"type": "json_object", "depth": 3}}, "response_format.depth", "not supported"),
        ({"response_format": "json"}, "response_format", "should be an object"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
        ({"structured_outputs": {"disable_any_whitespace": True}}, None, "disable_any_whitespace is not supported"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one text"),
        ({"guided_choice": [1]}, "guided_choice", "valid string"),
        ({"guided_grammar": 'root ::= "a"'}, "guided_grammar", "only Lark is served"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "guided_json and guided_regex exclude one another"),
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, None, "response_format and guided_json"),
        ({"structured_outputs": {"regex": "a", "grammar": LARK}}, "structured_outputs.grammar", "exclude one another"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend", "not supported"),
    ],
)
async def test_what_is_no_form_or_are_several_is_refused_in_words(
    fields: dict[str, Any], param: str | None, words: str
) -> None:
    with pytest.raises(ApiError, match=re.escape(words)) as refused:
        (await read(ChatBody, **fields)).options()
    assert param is None or refused.value.body["error"]["param"] == param
    assert refused.value.status == 400


async def test_a_response_has_one_form_and_knows_no_other() -> None:
    for text_format, words in (
        ({"type": "json_schema", "name": "n"}, "text.format.schema is missing"),
        ({"type": "grammar", "definition": "x"}, "text.format.definition is not supported"),
        ({"type": "grammar"}, "text.format.type is 'grammar'"),
    ):
        with pytest.raises(ApiError, match=re.escape(words)):
            (await read(ResponsesBody, text={"format": text_format})).options()
    with pytest.raises(ApiError, match=re.escape("text.format and guided_regex exclude one another")):
        (await read(ResponsesBody, text={"format": {"type": "json_object"}}, guided_regex="a")).options()


def test_the_sources_are_json() -> None:
    assert json.loads(SOURCE) == SCHEMA
