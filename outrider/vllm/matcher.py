"""Which of vLLM's rows is which line: nobody tells request ids, nor where a row went, so lines are known by content.

Pure: no clock, no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

TAIL_TOKENS = 16
"""Tokens at a line's end that, with its length, tell it from the others of the last step. Where several agree in both,
or the last step had not the line, all that stands before decides. A new line that agrees with one that has just ended
is taken for that: it is drafted for badly, and no token of it changes."""


class Row(NamedTuple):
    """One row of a batch, after a step."""

    content: Callable[[int, int], bytes]
    """The token ids from one position up to another as bytes, as many for each id."""
    num_tokens: int
    """Length of its line, with what the step decided."""
    num_new: int
    """How many tokens the step decided; 0 while the prompt is read."""


class Match(NamedTuple):
    """Whose line a row has."""

    number: int
    is_new: bool
    """Whether no row had it before."""


class _Line:
    """A line that is known by number."""

    __slots__ = ("_digest", "key")

    def __init__(self, content: bytes, key: tuple[int, bytes]) -> None:
        self.key = key
        self._digest = hashlib.blake2b(content)

    def grow(self, content: bytes, key: tuple[int, bytes]) -> None:
        self.key = key
        self._digest.update(content)

    def digest(self) -> bytes:
        return self._digest.digest()


class Matcher:
    """Numbers lines, and finds them again in later steps by what they were then. A step costs O(1) per row."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._found: dict[tuple[int, bytes], list[int]] = {}
        """Numbers of lines by length and tail: several where these are alike."""
        self._present: set[int] = set()
        """Lines that the last step had."""
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._lines)

    def match(self, rows: Sequence[Row]) -> list[Match]:
        """Whose line each row of a step has. No line is given to two rows."""
        taken: set[int] = set()
        numbers = [self._number(row, taken) for row in rows]  # all of them, before one line becomes like another's
        matches = [
            self._open(row) if number is None else self._grow(number, row)
            for row, number in zip(rows, numbers, strict=True)
        ]
        self._present = {match.number for match in matches}
        return matches

    def forget(self, numbers: Iterable[int]) -> None:
        """Lines that are over. Forgetting one twice is harmless."""
        for number in numbers:
            if (line := self._lines.pop(number, None)) is not None:
                self._remove(number, line.key)

    def _number(self, row: Row, taken: set[int]) -> int | None:
        num_before = row.num_tokens - row.num_new
        found = [number for number in self._found.get(_key(row, num_before), ()) if number not in taken]
        is_plain = self._present.issuperset(found) and len({self._lines[number].digest() for number in found}) == 1
        if found and not is_plain:
            digest = hashlib.blake2b(row.content(0, num_before)).digest()
            found = [number for number in found if self._lines[number].digest() == digest]
        if not found:
            return None
        taken.add(found[0])
        return found[0]

    def _open(self, row: Row) -> Match:
        self._last_number += 1
        number, key = self._last_number, _key(row, row.num_tokens)
        self._lines[number] = _Line(row.content(0, row.num_tokens), key)
        self._found.setdefault(key, []).append(number)
        return Match(number, is_new=True)

    def _grow(self, number: int, row: Row) -> Match:
        if row.num_new:
            line = self._lines[number]
            self._remove(number, line.key)
            key = _key(row, row.num_tokens)
            line.grow(row.content(row.num_tokens - row.num_new, row.num_tokens), key)
            self._found.setdefault(key, []).append(number)
        return Match(number, is_new=False)

    def _remove(self, number: int, key: tuple[int, bytes]) -> None:
        self._found[key].remove(number)
        if not self._found[key]:
            del self._found[key]


def _key(row: Row, num_tokens: int) -> tuple[int, bytes]:
    return num_tokens, row.content(max(0, num_tokens - TAIL_TOKENS), num_tokens)
