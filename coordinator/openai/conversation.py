"""A conversation as the service takes it, and what tells apart the parts of an answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.chat.families import SPECIAL_MARKERS, parser_for
from coordinator.chat.parser import Parser
from coordinator.chat.reasoning import tags_of
from coordinator.detokenizer import Detokenizer
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Started, Tokens
from outrider.core.protocol.chat_prompt import ChatPrompt, Tool

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

    def parser(self, started: Started) -> Parser:
        """The parser of one answer."""
        end = b"".join(map(self.detokenizer.content, started.prompt_token_ids[-PROMPT_END_TOKENS:]))
        family = self._service.tool_call_parser(self._source) if self._tools else None
        return parser_for(self._source, self._tools, prompt=end.decode(errors="replace"), family=family)

    def text(self, event: Tokens) -> str:
        """A round's text, with the markers in it."""
        if not self._markers:
            return event.text
        return "".join(self._markers.get(token.token_id, "") + token.text for token in event.tokens)


def _is_developers(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "developer"
