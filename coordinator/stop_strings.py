"""Stop strings: where a text that comes in pieces ends, and how much of it is certain not to be one's beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_OTHER, *_MARKS = map(chr, range(0xD800, 0xE000))
"""What stands for special tokens while stop strings are looked for, one for each that they name: surrogates, which no
text has, and more of them than stop strings name."""


class StopStrings:
    """Those of one text. One that names special tokens, which no text shows, is met where it is spelled in letters, and
    where the tokens themselves stand in it."""

    def __init__(self, stop: Sequence[str], special: Mapping[int, str]) -> None:
        """`special` are the names of all special tokens by their ids."""
        self._stop = tuple(stop)
        named = {token_id: name for token_id, name in special.items() if any(name in each for each in stop)}
        by_name = dict(zip(sorted(named.values(), key=len, reverse=True), _MARKS, strict=False))
        self._marked = tuple(_with_marks(each, by_name) for each in stop) if named else ()
        self._marks = {token_id: by_name.get(name, _OTHER) for token_id, name in special.items()} if named else {}
        self._unmarked = dict.fromkeys(map(ord, {*self._marks.values()}))
        self._held = ""
        """With marks."""
        self.found = False
        """Whether one has been met; the text ended before it."""

    def mark(self, token_id: int) -> str | None:
        """What is to be pushed for a special token, if stop strings name any; None for any other token."""
        return self._marks.get(token_id)

    def push(self, piece: str) -> str:
        """Adds to the text. Returns what is certain to stand before any stop string."""
        if not self._stop:
            return piece
        text = self._held + piece
        shown = self.shown(text)
        begins = [begin for stop in self._stop if (begin := shown.find(stop)) >= 0]
        begins += [len(self.shown(text[:begin])) for stop in self._marked if (begin := text.find(stop)) >= 0]
        if begins:
            self.found = True
            self._held = ""
            return shown[: min(begins)]
        num_shown = max(_overlap(shown, stop) for stop in self._stop)
        begin = len(text) - max([num_shown, *(_overlap(text, stop) for stop in self._marked)])
        while len(self.shown(text[begin:])) < num_shown:
            begin -= 1
        self._held = text[begin:]
        return self.shown(text[:begin])

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self.shown(self._held), ""
        return held

    def shown(self, text: str) -> str:
        """`text` without marks."""
        return text.translate(self._unmarked) if self._marks else text


def _with_marks(stop: str, marks: Mapping[str, str]) -> str:
    """Of two names that overlap the earlier one in `marks` is meant."""
    for name, mark in marks.items():
        stop = stop.replace(name, mark)
    return stop


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
