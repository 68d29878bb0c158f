"""Caller: who asks, as a door has found out, and what the request may use."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from outrider.token_file import TokenEntry


@dataclass(frozen=True, slots=True)
class Caller:
    """Nobody in particular, unless there is a token."""

    token: TokenEntry | None = None

    @property
    def name(self) -> str:
        """Of the token; empty without one. There are no more of them than a token file has."""
        return "" if self.token is None else self.token.name

    @property
    def cache_salt(self) -> str:
        """What keeps from others what workers have read of this caller's prompts."""
        return self.name

    @property
    def max_completions(self) -> int | None:
        """Most completions at a time."""
        return None if self.token is None else self.token.max_completions

    @property
    def tokens_per_minute(self) -> int | None:
        """Most tokens of prompts and answers."""
        return None if self.token is None else self.token.tokens_per_minute

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of one answer."""
        return None if self.token is None else self.token.max_tokens


ANYONE: Final = Caller()
"""Where no tokens are in use."""

CALLER: Final[ContextVar[Caller]] = ContextVar("caller", default=ANYONE)
"""Who made the request that the present task answers. Doors set it before anything else reads it."""
