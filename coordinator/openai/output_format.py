"""Output format: what an answer must match, by OpenAI's names and by vLLM's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import Field

from coordinator.chat.lark import regex_escaped
from coordinator.openai.api_error import ApiError
from coordinator.openai.body import Fields
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.validation import GRAMMAR_BYTES_MAX

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
"""The schema of a JSON object of which nothing more is asked."""


class OutputFormat(NamedTuple):
    """A grammar, and the field of the body that asks for it."""

    grammar: Grammar
    field: str


class JsonSchema(Fields):
    """A schema and what OpenAI's clients send beside it. It holds whether or not it is `strict`."""

    changes_no_token: ClassVar = ("description", "name", "strict")

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Fields):
    """The form of a choice's text, as chat has it."""

    type: str
    json_schema: JsonSchema | None = None

    def formats(self, field: str) -> Iterator[OutputFormat]:
        """What is asked for, if anything is. Raises ApiError."""
        match self.type:
            case "json_schema" if self.json_schema is not None:
                yield _of_schema(self.json_schema.schema_, f"{field}.json_schema")
            case "json_schema":
                raise ApiError(f"{field}.json_schema is missing, which has the schema", param=field)
            case _:
                yield from _plain_formats(self.type, field)


class TextFormat(Fields):
    """The form of a response's text."""

    changes_no_token: ClassVar = ("description", "name", "strict")

    type: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def formats(self, field: str) -> Iterator[OutputFormat]:
        """See `ResponseFormat.formats`."""
        match self.type:
            case "json_schema" if self.schema_ is not None:
                yield _of_schema(self.schema_, f"{field}.schema")
            case "json_schema":
                raise ApiError(f"{field}.schema is missing", param=field)
            case _:
                yield from _plain_formats(self.type, field)


class StructuredOutputs(Fields):
    """The form of a text, as vLLM has it: one of these."""

    neutral: ClassVar = {
        "disable_additional_properties": False,
        "disable_any_whitespace": False,
        "disable_fallback": False,
    }

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    """A schema."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def formats(self, field: str) -> Iterator[OutputFormat]:
        """See `ResponseFormat.formats`."""
        yield from formats(f"{field}.", self.json_, self.regex, self.choice, self.grammar)
        if self.json_object:
            yield _of_schema(_ANY_OBJECT, f"{field}.json_object")


def formats(
    prefix: str, schema: dict[str, Any] | str | None, regex: str | None, choice: Sequence[str] | None, lark: str | None
) -> Iterator[OutputFormat]:
    """Those that are asked for by vLLM's names behind a prefix. Raises ApiError."""
    if schema is not None:
        yield _of_schema(schema, f"{prefix}json")
    if regex is not None:
        yield OutputFormat(Grammar(GrammarKind.REGEX, regex), f"{prefix}regex")
    if choice is not None:
        if not choice or not all(choice):
            raise ApiError(
                f"{prefix}choice must have at least one text, and none that is empty", param=f"{prefix}choice"
            )
        if sum(map(len, choice)) > GRAMMAR_BYTES_MAX:
            raise ApiError(
                f"{prefix}choice must have at most {GRAMMAR_BYTES_MAX} bytes in all", param=f"{prefix}choice"
            )
        alternatives = "|".join(map(regex_escaped, choice))
        yield OutputFormat(Grammar(GrammarKind.REGEX, alternatives), f"{prefix}choice")
    if lark is not None:
        if "::=" in lark:
            raise ApiError(
                f"{prefix}grammar looks like EBNF; only Lark is served: rules as `name: …`, the first one `start`",
                param=f"{prefix}grammar",
            )
        yield OutputFormat(Grammar(GrammarKind.LARK, lark), f"{prefix}grammar")


def only_one(found: Sequence[OutputFormat]) -> OutputFormat | None:
    """The only one of those that a body asks for, None if there is none. Raises ApiError for several."""
    if len(found) > 1:
        names = " and ".join(each.field for each in found)
        raise ApiError(f"{names} exclude one another; an answer has one form", param=found[1].field)
    return found[0] if found else None


def _plain_formats(kind: str, field: str) -> Iterator[OutputFormat]:
    """Those that need nothing but their name."""
    if kind == "json_object":
        yield _of_schema(_ANY_OBJECT, field)
    elif kind != "text":
        raise ApiError(
            f"{field}.type is {kind[:40]!r}; 'text', 'json_object' and 'json_schema' are served", param=f"{field}.type"
        )


def _of_schema(schema: Mapping[str, Any] | str, field: str) -> OutputFormat:
    source = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return OutputFormat(Grammar(GrammarKind.JSON_SCHEMA, source), field)
