"""Constraint: what a session's text must be, for whoever guesses it. Who reads the text implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Constraint(Protocol):
    """What may follow the line of one session. Answers in microseconds.

    It decides which guesses are made and scored; what is chosen, the masks of the target's logits decide.
    """

    def allows(self, path: Sequence[int]) -> bool:
        """Whether these tokens, all of them, may follow the line."""
        ...

    def forced(self, path: Sequence[int]) -> int | None:
        """The only token that may follow the line and then `path`; None if there are several, or none is known."""
        ...

    def commit(self, token_ids: Sequence[int]) -> None:
        """These tokens were decided after all before."""
        ...
