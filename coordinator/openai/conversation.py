"""A conversation on its way through the target's chat template, and what tells apart the parts of an answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.chat.families import SPECIAL_MARKERS, parser_for
from coordinator.chat.parser import Parser
from coordinator.chat.reasoning import tags_of
from coordinator.service import GenerationService
from outrider.core.coordinate.events import Tokens
from outrider.core.protocol.chat_prompt import ChatPrompt, Tool


@dataclass(frozen=True, slots=True)
class Conversation:
    """The prompt that a template has made of messages and tools."""

    prompt: str
    """With its special tokens: none are to be added."""
    source: str
    """The template's text."""
    tools: Sequence[Tool] | None
    markers: Mapping[int, str]
    """By their ids the special tokens that a parser must see, though no text shows them."""

    def parser(self) -> Parser:
        """The parser of one answer."""
        return parser_for(self.source, self.tools, prompt=self.prompt)

    def text(self, event: Tokens) -> str:
        """A round's text, with the markers in it."""
        if not self.markers:
            return event.text
        return "".join(self.markers.get(token.token_id, "") + token.text for token in event.tokens)


async def rendered(
    service: GenerationService,
    messages: Sequence[Any],
    tools: Sequence[Tool] | None = None,
    **settings: Any,
) -> Conversation:
    """Renders it, with the `settings` of `ChatPrompt`. Raises InvalidRequestError."""
    source = service.chat_template().source(tools)
    if "developer" not in source:  # OpenAI's newer name of the same role
        messages = [message | {"role": "system"} if _is_developers(message) else message for message in messages]
    prompt = await service.render(ChatPrompt(messages=messages, tools=tools, **settings))
    detokenizer = service.detokenizer()
    tags = tags_of(source)
    markers = SPECIAL_MARKERS if tools else set(tags or ())
    names = {token_id: detokenizer.content(token_id).decode() for token_id in detokenizer.special_ids(markers)}
    return Conversation(prompt, source, tools, names)


def _is_developers(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "developer"
