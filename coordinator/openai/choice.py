"""One choice of an answer: a completion of a prompt, as far as it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.openai.steps import Steps
from outrider.core.coordinate.events import Finished, Started, Token, Tokens
from outrider.core.protocol.messages import FinishReason


@dataclass(slots=True)
class Choice:
    """What is known of it beside its pieces."""

    index: int
    """Among all choices of the answer."""
    prompt: int
    """Which prompt it continues."""
    completion: int
    """Among those of its prompt."""
    started: Started
    steps: Steps
    latest: Tokens | None = None
    """The round before."""
    num_characters: int | None = None
    """Of the pieces so far; None before the first."""
    finished: Finished | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there was a piece."""
        return self.num_characters is not None

    def piece(self, text: str, tokens: Sequence[Token], *, is_had: bool = False) -> Piece:
        """The next piece."""
        offset = self.num_characters or 0
        piece = Piece(self, text, tokens, is_first=not self.has_begun, offset=offset, is_had=is_had)
        self.num_characters = offset + len(text)
        return piece

    @property
    def seed(self) -> int:
        """With which this choice can be had alone."""
        return self.started.seed_of(self.completion)

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's word; None while there is more to come."""
        if self.finished is None:
            return None
        return "length" if self.finished.reason is FinishReason.LENGTH else "stop"


@dataclass(frozen=True, slots=True)
class Piece:
    """What has become certain of a choice since the piece before: a round, or its end."""

    choice: Choice
    text: str
    tokens: Sequence[Token]
    is_first: bool
    offset: int
    """Characters of the choice before this text."""
    is_had: bool = False
    """Whether the client has it, from a coordinator that was lost."""

    @property
    def is_last(self) -> bool:
        """Whether the choice ended with it."""
        return self.choice.finished is not None
