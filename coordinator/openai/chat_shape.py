"""How the choices of chat completions are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.chat.parser import Parser
from coordinator.openai.chat_body import ChatBody
from coordinator.openai.choice import Choice, Piece
from coordinator.openai.conversation import Conversation
from coordinator.openai.logprobs import chat_logprobs
from coordinator.openai.message import delta_message, whole_message
from outrider.core.coordinate.events import Token, Tokens


class ChatShape:
    """See `Shape`."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, body: ChatBody, conversation: Conversation) -> None:
        self._body = body
        self._conversation = conversation
        self._parsers: dict[int, Parser] = {}
        """Of choices that are streamed, by index."""
        self._begun: set[int] = set()
        """Indices of choices of which something has been sent."""
        self._calling: set[int] = set()
        """Indices of choices that call tools."""

    def echo(self, choice: Choice) -> str:
        """See `Shape`."""
        return ""

    def text(self, event: Tokens) -> str:
        """See `Shape`."""
        return self._conversation.text(event)

    def chunk_choice(self, piece: Piece) -> dict[str, Any] | None:
        """See `Shape`."""
        choice = piece.choice
        parser = self._parsers.get(choice.index)
        if parser is None:
            parser = self._parsers[choice.index] = self._conversation.parser(choice.started, choice.index)
        delta = delta_message([*parser.push(piece.text), *(parser.finish() if piece.is_last else ())])
        if "tool_calls" in delta:
            self._calling.add(choice.index)
        has_tokens = bool(piece.tokens) and bool(self._body.logprobs or self._body.return_token_ids)
        if not delta and not has_tokens and not piece.is_last:
            return None
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            delta = {"role": "assistant", "content": ""} | delta
        return {"delta": delta, **self._beside(choice, piece.tokens)}

    def whole_choice(self, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """See `Shape`."""
        parser = self._conversation.parser(choice.started, choice.index)
        message = whole_message([*parser.push(text), *parser.finish()])
        if "tool_calls" in message:
            self._calling.add(choice.index)
        return {"message": message, **self._beside(choice, tokens)}

    def _beside(self, choice: Choice, tokens: Sequence[Token]) -> dict[str, Any]:
        """What stands beside a message or its delta."""
        calls = choice.index in self._calling and choice.finish_reason == "stop"
        found: dict[str, Any] = {
            "logprobs": chat_logprobs(tokens, self._conversation.detokenizer) if self._body.logprobs else None,
            "finish_reason": "tool_calls" if calls else choice.finish_reason,
        }
        if self._body.return_token_ids:
            found["token_ids"] = [token.token_id for token in tokens]
        return found

    def root(self, choice: Choice) -> dict[str, Any]:
        """See `Shape`."""
        return {"prompt_token_ids": choice.started.prompt_token_ids} if self._body.return_token_ids else {}
