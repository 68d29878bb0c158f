"""A compiled grammar: what all sessions with it have in common."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from llguidance import LLMatcher, LLParserLimits

from outrider.core.protocol.errors import FieldViolation, InvalidRequestError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.grammar.tag import Tag
from outrider.grammar.vocabulary import Vocabulary

LEXER_STATES_MAX = 50_000
"""Most states of a grammar's lexer, at some 2 kB each."""

STEP_ITEMS_MAX = 50_000
"""Most parser items for one token: 3 ms."""

STEP_FUEL_MAX = 200_000
"""Most regular-expression nodes that a mask may make: 15 ms."""

WHITESPACE: Final = r"[ \t\r\n]{0,32}"
"""What may stand between the tokens of JSON, unless the schema's own `x-guidance` says otherwise: enough to be printed
nicely, and too little for a model that has lost its way to go on for ever."""

_REASON_LENGTH_MAX = 500
"""Characters of a compiler's error that are passed on."""

_LIMITS: Final = LLParserLimits(
    max_lexer_states=LEXER_STATES_MAX,
    step_max_items=STEP_ITEMS_MAX,
    step_lexer_fuel=STEP_FUEL_MAX,
    verbose_errors=False,
)


def compiled_matcher(vocabulary: Vocabulary, kind: GrammarKind, source: str) -> LLMatcher:
    """A matcher at the beginning of its text. Raises ValueError, in words.

    llguidance does not bound the time and the stack that this takes: see `guard.py`.
    """
    match kind:
        case GrammarKind.JSON_SCHEMA:
            bounds = None if "x-guidance" in source else WHITESPACE
            grammar = LLMatcher.grammar_from_json_schema(source, defaults={"whitespace_pattern": bounds})
        case GrammarKind.REGEX:
            grammar = LLMatcher.grammar_from_regex(source)
        case GrammarKind.LARK:
            grammar = LLMatcher.grammar_from_lark(source)
    matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher


def refusal(grammar: Grammar, reason: str) -> InvalidRequestError:
    """What to tell the client whose grammar cannot be used."""
    text = reason.strip()
    if len(text) > _REASON_LENGTH_MAX:  # what is wrong stands at either end, between them the grammar
        text = f"{text[: _REASON_LENGTH_MAX // 2]} ... {text[-_REASON_LENGTH_MAX // 2 :]}"
    return InvalidRequestError([FieldViolation(f"sampling.grammar.{grammar.kind}", text)])


class CompiledGrammar:
    """Read by the states of all its sessions (`state.py`). They share what the lexer has learned of the vocabulary."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        """Raises InvalidRequestError."""
        self.vocabulary = vocabulary
        self.is_worn_out = False
        """Whether a session met a limit. It may be that of all sessions' lexer states together: compile it anew."""
        try:
            self.matcher = compiled_matcher(vocabulary, grammar.kind, grammar.source)
        except ValueError as error:
            raise refusal(grammar, f"cannot be compiled: {error}") from error
        self.tag = Tag(grammar.begins_after.encode()) if grammar.begins_after else None
        self.masks_before: list[bytes] = [] if self.tag is None else self._masks_before(self.tag)
        """Before the grammar has begun, for each state of its tag what may follow: all but the ends of text, and tokens
        that hold the tag's end and then what the grammar does not begin with."""

    def _masks_before(self, tag: Tag) -> list[bytes]:
        forbidden: defaultdict[int, list[int]] = defaultdict(list)
        begins: dict[bytes, bool] = {}
        for state, token_id, rest in tag.cut_by(self.vocabulary.token_bytes):
            if rest not in begins:
                token_ids = self.vocabulary.spelled(rest)
                begins[rest] = token_ids is not None and self.matcher.validate_tokens(token_ids) == len(token_ids)
            if not begins[rest]:
                forbidden[state].append(token_id)
        eos_token_ids = self.vocabulary.eos_token_ids
        usual = self.vocabulary.mask_without([*eos_token_ids])
        return [
            self.vocabulary.mask_without([*eos_token_ids, *forbidden[state]]) if forbidden[state] else usual
            for state in range(len(tag.content))
        ]
