"""Refusal: why something is not used or not done, as a value. None in its place means that there is no objection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason in words that may be shown to the peer, as those of an `OutriderError`."""

    text: str

    def __str__(self) -> str:
        return self.text


REASON_CHARACTERS_MAX = 200
"""As much is passed on of what a compiler, a driver or a library says: its first sentence, not the code it is about."""


def first_line(error: Exception) -> str:
    """The first line of what an error of somebody else's says; it may be empty."""
    return str(error).strip().partition("\n")[0][:REASON_CHARACTERS_MAX]
