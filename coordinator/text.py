"""The text edge: token ids become text, piece by piece, and text may end at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.detokenizer import TextStream


class TextDecoder:
    """Turns one session's tokens into text that is certain.

    Bytes that may be the beginning of a character, and text that may be the beginning of a stop string, are held back
    until more is known.
    """

    def __init__(self, stream: TextStream, stop: Sequence[str], stop_token_ids: frozenset[int] = frozenset()) -> None:
        """`stop_token_ids` are the special tokens, which no text shows, whose names are stop strings: they end the text
        too.
        """
        self._stream = stream
        self._stop = tuple(stop)
        self._stop_token_ids = stop_token_ids
        self._held = ""
        self.stopped = False
        """Whether a stop string has been met; the text ended before it."""

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that became certain with it."""
        if token_id in self._stop_token_ids:
            text = self.finish()
            self.stopped = True
            return text
        return self._scan(self._stream.push(token_id))

    def finish(self) -> str:
        """The text that was held back to the end. Bytes that never became a character decode to U+FFFD."""
        if self.stopped:
            return ""
        text = self._scan(self._stream.rest())
        held, self._held = self._held, ""
        return text + held

    def _scan(self, piece: str) -> str:
        if not self._stop:
            return piece
        text = self._held + piece
        found = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
