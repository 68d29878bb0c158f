"""A conversation as the service takes it, and what tells apart the parts of an answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import count
from typing import Any

from coordinator.chat.call_grammar import CallGrammar
from coordinator.chat.call_syntax import CALL_MARKUP, CALL_SYNTAXES
from coordinator.chat.families import SPECIAL_MARKERS, parser_for
from coordinator.chat.parser import Parser
from coordinator.chat.reasoning import tags_of
from coordinator.chat.tool_choice import check_writable, forced_tools, is_named
from coordinator.detokenizer import Detokenizer
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Started, Tokens
from outrider.core.protocol.chat_prompt import ChatPrompt, Tool
from outrider.core.protocol.grammar import Grammar
from outrider.core.protocol.options import GenerationOptions

PROMPT_END_TOKENS = 32
"""Tokens of a prompt that are looked at to see whether it has begun the reasoning: a tag and space behind it."""


class Conversation:
    """Messages, and the tools that the model is told of."""

    def __init__(
        self, service: GenerationService, messages: Sequence[Any], tools: Sequence[Tool] | None = None, **settings: Any
    ) -> None:
        """`settings` are those of `ChatPrompt`.

        Raises WorkerUnavailableError, and InvalidRequestError if the target has no template for conversations.
        """
        self._source = service.chat_template().source(tools)
        self._tools = tools
        self._service = service
        self.detokenizer: Detokenizer = service.detokenizer()
        if "developer" not in self._source:  # OpenAI's newer name of a role that templates know by the older one
            messages = [message | {"role": "system"} if _is_developers(message) else message for message in messages]
        self.prompt = ChatPrompt(messages=messages, tools=tools, **settings)
        tags = tags_of(self._source)
        markers = SPECIAL_MARKERS if tools else frozenset(tags or ())
        self._markers: Mapping[int, str] = {
            token_id: self.detokenizer.content(token_id).decode() for token_id in self.detokenizer.special_ids(markers)
        }
        """By their ids the special tokens that a parser must see, though no text shows them."""

    def held(self, options: GenerationOptions, tool_choice: Any, *, parallel: bool) -> GenerationOptions:
        """The options with a grammar by which the answer uses the tools as it is to.

        A call that is forced, and one of a strict tool if the family writes JSON, keeps to the tool's schema. Without
        `parallel` there is one call at most.

        Raises InvalidRequestError where that cannot be.
        """
        if not self._tools:
            return options
        grammar = self._call_grammar(self._tools, options.sampling.grammar, tool_choice, parallel=parallel)
        return replace(options, sampling=replace(options.sampling, grammar=grammar))

    def _call_grammar(
        self, tools: Sequence[Tool], answer: Grammar | None, tool_choice: Any, *, parallel: bool
    ) -> Grammar | None:
        family, forced = self._service.tool_call_parser(self._source), forced_tools(tools, tool_choice)
        is_strict = family in CALL_SYNTAXES and any(tool["function"].get("strict") is True for tool in tools)
        if not forced and answer is None and not is_strict and parallel:
            return None
        check_writable(tools)
        calls = CallGrammar(
            family,
            self._source,
            tools,
            self.detokenizer.added_ids(CALL_MARKUP),
            parallel=parallel and not is_named(tool_choice),
        )
        if forced:
            return calls.forced(forced)
        if answer is not None:
            return calls.or_else(answer)
        return calls.allowed(self._service.target().eos_token_ids)

    def parser(self, started: Started, choice: int) -> Parser:
        """The parser of one answer, which is the request's choice of that number."""
        end = b"".join(map(self.detokenizer.content, started.prompt_token_ids[-PROMPT_END_TOKENS:]))
        family = self._service.tool_call_parser(self._source) if self._tools else None
        names = (sha256(f"{started.request_id} {choice} {call}".encode()).hexdigest() for call in count())
        return parser_for(self._source, self._tools, names=names, prompt=end.decode(errors="replace"), family=family)

    def text(self, event: Tokens) -> str:
        """A round's text, with the markers in it."""
        if not self._markers:
            return event.text
        return "".join(self._markers.get(token.token_id, "") + token.text for token in event.tokens)


def _is_developers(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "developer"
