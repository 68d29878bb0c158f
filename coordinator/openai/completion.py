"""POST /v1/completions: a text, or token ids, or lists of them, and how the continuations are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from coordinator.detokenizer import Detokenizer
from coordinator.openai.api_error import ApiError
from coordinator.openai.body import Int
from coordinator.openai.choice import Choice, Piece
from coordinator.openai.generation_body import ChoicesBody
from coordinator.openai.logprobs import completion_logprobs
from outrider.core.coordinate.events import Token, Tokens
from outrider.core.protocol.options import GenerationOptions, Prompt

PROMPTS_MAX = 64
"""Most prompts in one request: as many as a coordinator runs at a time unless it is told otherwise."""


class CompletionBody(ChoicesBody):
    """The body."""

    field_names: ClassVar[Mapping[str, str]] = {
        "text": "prompt",
        "token_ids.ids": "prompt",
        "num_completions": "n",
        "resume": "received_token_ids",
        "speculation.prediction": "prediction",
        "num_logprobs": "logprobs",
    }
    neutral: ClassVar[Mapping[str, Any]] = {**ChoicesBody.neutral, "best_of": 1, "suffix": ""}

    prompt: Any
    logprobs: Int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """See `GenerationBody`."""
        return self.logprobs

    def options(self) -> GenerationOptions:
        """See `GenerationBody`."""
        return replace(super().options(), add_special_tokens=self.add_special_tokens is not False)

    def prompts(self) -> Sequence[Prompt]:
        """The prompts one by one. Raises ApiError."""
        if self.echo and self.logprobs is not None:
            raise ApiError(
                "log-probabilities of the prompt are not supported; leave echo or logprobs out", param="echo"
            )
        match self.prompt:
            case str() as text:
                return [text]
            case list() as items if _is_all(items, int):
                return [cast("list[int]", items)]
            case list() as items if len(items) > PROMPTS_MAX:  # before each is looked at, on the event loop
                raise ApiError(f"at most {PROMPTS_MAX} prompts are allowed in one request", param="prompt")
            case list() as items if _is_all(items, str):
                return cast("Sequence[Prompt]", items)
            case list() as items if _is_all(items, list) and all(_is_all(item, int) for item in items):
                return cast("Sequence[Prompt]", items)
            case _:
                raise ApiError("prompt must be a text, a list of token ids, or a list of such prompts", param="prompt")


def _is_all(items: list[Any], kind: type) -> bool:
    """Whether `items` are some values of just that type: true and false are no token ids."""
    return set(map(type, items)) == {kind}


class CompletionShape:
    """How completions are written. See `Shape`."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, body: CompletionBody, echoes: Sequence[str], detokenizer: Detokenizer) -> None:
        """`echoes` has the text in front of each prompt's choices."""
        self._body = body
        self._echoes = echoes
        self._detokenizer = detokenizer

    def echo(self, choice: Choice) -> str:
        """See `Shape`."""
        return self._echoes[choice.prompt]

    def text(self, event: Tokens) -> str:
        """See `Shape`."""
        return event.text

    def chunk_choice(self, piece: Piece) -> dict[str, Any] | None:
        """See `Shape`."""
        has_tokens = bool(piece.tokens) and (self._body.logprobs is not None or self._body.return_token_ids)
        if not piece.text and not has_tokens and not piece.is_last:
            return None
        found = self._told(piece.choice, piece.text, piece.tokens, piece.offset)
        if self._body.return_token_ids:
            found |= {"prompt_token_ids": piece.choice.started.prompt_token_ids if piece.is_first else None}
        return found

    def whole_choice(self, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """See `Shape`."""
        found = self._told(choice, text, tokens, 0)
        if self._body.return_token_ids:
            found |= {"prompt_token_ids": choice.started.prompt_token_ids}
        return found

    def root(self, choice: Choice) -> dict[str, Any]:
        """See `Shape`."""
        return {}

    def _told(self, choice: Choice, text: str, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = completion_logprobs(tokens, self._detokenizer, offset)
        found = {"text": text, "logprobs": logprobs, "finish_reason": choice.finish_reason}
        if self._body.return_token_ids:
            found |= {"token_ids": [token.token_id for token in tokens]}
        return found
