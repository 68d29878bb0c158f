"""The text edge: token ids become text, piece by piece, and text may end at a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextDecoder:
    """Turns one session's tokens into text that is certain.

    Bytes that may be the beginning of a character, and text that may be the beginning of a stop string, are held back
    until more is known.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._undecoded: list[int] = []
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        """Whether a stop string has been met; the text ended before it."""

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that became certain with it."""
        piece = self._stream.step(self._tokenizer, token_id)
        if piece is None:
            self._undecoded.append(token_id)
            return ""
        self._undecoded.clear()
        return self._scan(piece)

    def finish(self) -> str:
        """The text that was held back to the end. Bytes that never became a character decode to U+FFFD."""
        if self.stopped:
            return ""
        tail = self._tokenizer.decode(self._undecoded, skip_special_tokens=True) if self._undecoded else ""
        text = self._scan(tail)
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _scan(self, piece: str) -> str:
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
