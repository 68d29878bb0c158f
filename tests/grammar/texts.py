"""The bundled vocabulary, and grammars over it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.grammar.compiled import CompiledGrammar
from outrider.grammar.vocabulary import Vocabulary

TOKENIZER = Path(__file__).parents[2] / "models" / "target" / "tokenizer.json"
VOCAB_SIZE = 4100
"""Four more than the tokenizer knows, as padded models have."""
EOS = 0

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["cat", "catfish", "dog", "Übergrößenträger"]},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "kind", "ages"],
    "additionalProperties": False,
}
TREE = """
start: node
node: "(" VALUE node* ")"
VALUE: /[a-z]{1,4}/
"""


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(TOKENIZER.read_text(encoding="utf-8"), VOCAB_SIZE, [EOS])


def json_schema(schema: object, begins_after: str = "") -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema), begins_after)


@cache
def compiled(grammar: Grammar) -> CompiledGrammar:
    return CompiledGrammar(grammar, vocabulary())


def holds(mask: bytes, token_id: int) -> bool:
    """Whether a mask allows the token."""
    return bool(mask[token_id >> 3] >> (token_id & 7) & 1)


def allowed(mask: bytes) -> set[int]:
    """The token ids of a mask."""
    return {token_id for token_id in range(len(mask) * 8) if holds(mask, token_id)}
