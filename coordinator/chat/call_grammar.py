"""Call grammar: answers that call tools as their parameters' schemas demand, in the syntax of the model's family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from coordinator.chat.call_syntax import CALL_SYNTAXES, CallSyntax
from coordinator.chat.lark import TokenIds, embedded, json_of, regex_escaped, text, token_but
from outrider.core.protocol.chat_prompt import Tool
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError
from outrider.core.protocol.grammar import Grammar, GrammarKind

_NO_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a tool without `parameters`."""


class CallGrammar:
    """The calls of some tools."""

    def __init__(
        self, family: str, template: str, tools: Sequence[Tool], token_ids: TokenIds, *, parallel: bool
    ) -> None:
        """`family` and `template` tell the syntax, `token_ids` which of its markup is one token. `parallel` allows
        several calls in one answer. Raises InvalidRequestError where calls cannot be held to a schema."""
        if family not in CALL_SYNTAXES:
            raise _refused(
                "tools",
                f"calls as {family} models write them are not JSON and cannot be held to a grammar; leave out a "
                "tool_choice that forces one, parallel_tool_calls: false, and a form of the answer",
            )
        self._syntax: CallSyntax = CALL_SYNTAXES[family](template)
        self._token_ids = token_ids
        self._tools = tools
        self._parallel = parallel

    def forced(self, tools: Sequence[Tool]) -> Grammar:
        """An answer calls some of `tools`. Raises InvalidRequestError."""
        opening = text(self._syntax.opening, self._token_ids)
        return _lark(f"start: {opening} calls", *self._calls(tools, strict_alone=False))

    def allowed(self, eos_token_ids: Iterable[int]) -> Grammar:
        """An answer is any text, and may end in calls; those of strict tools keep to their schemas. Raises
        InvalidRequestError."""
        opening = self._syntax.opening
        calls = self._calls(self._tools, strict_alone=True)
        if not opening:  # what begins like JSON is a call
            return _lark("start: calls | TEXT", "TEXT: /([^{\\s](?s:.*))?/", *calls)
        if opening in self._token_ids:
            token_id = self._token_ids[opening]
            return _lark(
                f"start: text (<[{token_id}]> calls)?", f"text: {token_but([token_id, *eos_token_ids])}*", *calls
            )
        opened = f"/(?s:.*){regex_escaped(opening)}/"
        unopened = f"TEXT: /(?s:.*)/ & ~/(?s:.*){regex_escaped(opening)}(?s:.*)/"
        return _lark("start: TEXT | text_opening calls", unopened, f"text_opening[lazy]: {opened}", *calls)

    def or_else(self, answer: Grammar) -> Grammar:
        """An answer either calls tools, or is of another grammar. Raises InvalidRequestError where nothing tells them
        apart."""
        opening = self._syntax.opening
        if not opening:
            raise _refused(
                "tools",
                "nothing tells this model's calls from an answer in a form; leave the form out, or set tool_choice to "
                "'none' or 'required'",
            )
        return _lark(
            f"start: {text(opening, self._token_ids)} calls | answer",
            *self._calls(self._tools, strict_alone=True),
            f"answer: {embedded(answer)}",
        )

    def _calls(self, tools: Sequence[Tool], *, strict_alone: bool) -> Sequence[str]:
        """Rules for everything behind the opening. Calls keep to their tool's schema, or only those of strict ones."""
        syntax, token_ids = self._syntax, self._token_ids
        more = ""
        if self._parallel and syntax.between is not None:
            more = f"({text(syntax.between, token_ids)} call)*"
        rules = [
            f"calls: {text(syntax.begin, token_ids)} call {more} {text(syntax.end, token_ids)}",
            f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}",
        ]
        for number, tool in enumerate(tools):
            function = tool["function"]
            head = text(syntax.head.replace("{}", function["name"]), token_ids)
            is_held = not strict_alone or function.get("strict") is True
            schema = _arguments_schema(function) if is_held else {"type": "object"}
            rules += [
                f"call_{number}: {head} arguments_{number} {text(syntax.tail, token_ids)}",
                f"arguments_{number}: {json_of(schema)}",
            ]
        return rules


def _arguments_schema(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a call's arguments, which are an object whether or not the `parameters` say so."""
    parameters = function.get("parameters")
    if parameters is None:
        return _NO_PARAMETERS
    if parameters.get("type", "object") != "object":
        raise _refused("tools", f"the parameters of {function['name']} must be a schema of type 'object'")
    return {"type": "object", **parameters}


def _lark(*rules: str) -> Grammar:
    return Grammar(GrammarKind.LARK, "\n".join(rules))


def _refused(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])
