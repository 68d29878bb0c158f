"""Refusal: why something is not used or not done, as a value. None in its place means that there is no objection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason in words that may be shown to the peer, as those of an `OutriderError`."""

    text: str

    def __str__(self) -> str:
        return self.text
