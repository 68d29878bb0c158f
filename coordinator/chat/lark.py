"""Lark: how text, tokens and other grammars are written inside a grammar in llguidance's syntax."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, assert_never

from outrider.core.protocol.grammar import Grammar, GrammarKind

TokenIds = Mapping[str, int]
"""By its text, each piece of markup that is one token."""

SPACE: Final = "/[ \\n]{0,2}/"
"""What models write between a tag and what follows it."""

WHITESPACE: Final = r"[ \t\r\n]{0,32}"
"""What may stand between the tokens of JSON, unless the schema says otherwise: as in JSON that is a whole answer."""

_WHITESPACE_OPTIONS: Final = "x-guidance"
"""Where llguidance looks for it in a schema."""

_REGEX_END: Final = re.compile(r"\\(?s:.)|/")
_REGEX_SYNTAX: Final = re.compile(r"[/\\.+*?()|\[\]{}^$#&~-]")


def text(literal: str, token_ids: TokenIds) -> str:
    """That very text, with those tokens wherever their markup stands in it."""
    if not literal:
        return ""
    if not token_ids:
        return _quoted(literal)
    markup = re.compile(f"({'|'.join(map(re.escape, sorted(token_ids, key=len, reverse=True)))})")
    parts = [part for part in markup.split(literal) if part]
    return " ".join(f"<[{token_ids[part]}]>" if part in token_ids else _quoted(part) for part in parts)


def token_but(token_ids: Iterable[int]) -> str:
    """Any token but these."""
    return f"<[^{','.join(map(str, sorted(token_ids)))}]>"


def json_of(schema: Mapping[str, Any]) -> str:
    """JSON that the schema allows."""
    options = schema.get(_WHITESPACE_OPTIONS, {"whitespace_pattern": WHITESPACE})
    return f"%json {json.dumps({**schema, _WHITESPACE_OPTIONS: options}, ensure_ascii=False)}"


def embedded(grammar: Grammar) -> str:
    """What a grammar matches, at its rule's place."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return _embedded_json(grammar.source)
        case GrammarKind.REGEX:
            return f"/{_without_end(grammar.source)}/"
        case GrammarKind.LARK:
            return f"%lark {{\n{grammar.source}\n}}"
        case _:
            assert_never(grammar.kind)


def _embedded_json(source: str) -> str:
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError):  # the compiler says what is wrong
        schema = None
    return json_of(schema) if isinstance(schema, dict) else f"%json {source}"


def _without_end(source: str) -> str:
    """A regular expression without the slash that would end it, nor line ends."""
    escaped = _REGEX_END.sub(lambda match: "\\/" if match[0] == "/" else match[0], source)
    return escaped.replace("\\\n", "\\n").replace("\n", "\\n")


def regex_escaped(literal: str) -> str:
    """The regular expression of that very text, which may stand between slashes."""
    return _REGEX_SYNTAX.sub(r"\\\g<0>", literal)


def _quoted(literal: str) -> str:
    return json.dumps(literal, ensure_ascii=False)
