"""The text edge: token ids become text, piece by piece, and text may end at a stop string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType

from coordinator.detokenizer import TextStream
from coordinator.stop_strings import StopStrings

UNCERTAIN_MAX = 1024
"""Characters of text that is not certain yet, and of marks in it, up to which special tokens are looked at beside it.
Stop strings are shorter; without a bound each token of an endless run of bytes would cost what all before it did."""

_NONE: Mapping[int, str] = MappingProxyType({})


class TextDecoder:
    """Turns one session's tokens into text that is certain.

    Bytes that may be the beginning of a character, and text that may be the beginning of a stop string, are held back
    until more is known.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str], special: Mapping[int, str] = _NONE) -> None:
        """For `special` see `StopStrings`."""
        self._stream = stream
        self._stops = StopStrings(stop, special)
        self._waiting = ""
        """What was no certain text yet when a special token came, and that token's mark."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been met; the text ended before it."""
        return self._stops.found

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that became certain with it."""
        mark = self._stops.mark(token_id)
        if mark is None:
            return self._stops.push(self._certain(self._stream.push(token_id)))
        if len(self._waiting) > UNCERTAIN_MAX:
            return ""
        waiting, ending = self._with_marks(self._stream.rest()) + mark, copy(self._stops)
        text = ending.push(waiting)
        if ending.found or waiting == mark:
            self._stops = ending
            return text
        self._waiting = waiting
        return ""

    def finish(self) -> str:
        """The text that was held back to the end. Bytes that never became a character decode to U+FFFD."""
        if self.stopped:
            return ""
        return self._stops.push(self._certain(self._stream.rest())) + self._stops.rest()

    def _certain(self, piece: str) -> str:
        if not (self._waiting and piece):
            return piece
        piece, self._waiting = self._with_marks(piece), ""
        return piece

    def _with_marks(self, piece: str) -> str:
        """With those that wait, where it begins as was expected; bytes may have become another character since."""
        expected = self._stops.shown(self._waiting)
        return self._waiting + piece.removeprefix(expected) if piece.startswith(expected) else piece
