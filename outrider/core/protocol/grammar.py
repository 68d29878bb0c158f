"""Grammar: the formal language that the text of an answer must belong to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GrammarKind(StrEnum):
    """How the language is written down. The names are those of the fields of `Grammar` in common.proto."""

    JSON_SCHEMA = "json_schema"
    """A JSON Schema, as JSON: the texts are JSON that it allows."""
    REGEX = "regex"
    """A regular expression that matches the whole text."""
    LARK = "lark"
    """A context-free grammar in the Lark syntax of llguidance; the texts are those of its rule `start`."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """See `Grammar` in common.proto. The source is unchecked: whoever compiles it says what is wrong with it."""

    kind: GrammarKind
    source: str
    begins_after: str = ""
    """Text after whose first appearance in the answer the language begins; empty: at once."""
