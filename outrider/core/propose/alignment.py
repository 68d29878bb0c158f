"""Where a line stands in a text that was expected of it: found again after every departure, at one token a time.

As long as the line follows the text, its place moves along. Where the line departs, the place moves on beside it, as if
each word had been put in another's place, until the line's last few tokens stand in the text: then the place is behind
them. Of several such places the nearest one counts that is not before where the line was last sure to stand, since an
edited text keeps its order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from outrider.core.propose.ngram import extend
from outrider.core.propose.ngram_static import TOKEN_BITS

ORDERS = (3, 2, 1)
"""How many last tokens find a place, most first. In replays of 24 source files with edits of six kinds, chains of 15
commit 12.6 tokens a round where 3 % of the words are changed: 12.5 with 4, 2 and 1 tokens, 11.9 without the single one.
"""

_SURE = 8
"""Tokens in a row that make a place sure. 4 in the same replays cost 2 % where words are changed."""

_START_RUN = 2
"""What the beginning of a text counts as: it is expected there, though nothing has agreed yet."""

READ_TOKENS = 32
"""Tokens of the text that are read for each one of the line: 16,384 within 512, and some 30 microseconds."""


class Place(NamedTuple):
    """A place in the text."""

    position: int
    """Of the token that is expected next."""
    run: int
    """How many tokens in a row have agreed; where the line goes its own way minus those that have not."""
    sure: int
    """The place where it was last sure to stand."""


class Alignment:
    """Follows one line through one text. Token ids below VOCAB_SIZE_MAX are the caller's promise."""

    __slots__ = ("_appeared", "_context", "_expected", "_num_read", "_places", "context", "place")

    def __init__(self, expected: Sequence[int]) -> None:
        """Begins before the first token of the `expected` text."""
        self.place = Place(0, _START_RUN, 0)
        """Of the line's end."""
        self.context = 0
        """The line's last tokens, packed (`ngram.extend`)."""
        self._expected = expected
        self._appeared = bytearray(len(expected))
        self._num_read = 0
        self._context = 0
        self._places: list[dict[int, list[int]]] = [{} for _ in ORDERS]
        """For each order and context of the text the places behind it, ascending."""

    @property
    def num_appeared(self) -> int:
        """How many tokens of the text the line has had in their place."""
        return sum(self._appeared)

    def expected(self, place: Place) -> int | None:
        """The token that is expected at `place`; None at the text's end."""
        return self._expected[place.position] if place.position < len(self._expected) else None

    def follow(self, token_id: int) -> None:
        """The line goes on with `token_id`."""
        self._read()
        if self.expected(self.place) == token_id:
            self._appeared[self.place.position] = 1
        self.context = extend(self.context, token_id)
        self.place = self.after(self.place, token_id, self.context)

    def after(self, place: Place, token_id: int, context: int) -> Place:
        """Where a path stands that was at `place` and went on with `token_id`, with which its packed `context` ends."""
        position, run, sure = place
        if self.expected(place) == token_id:
            run = max(run, 0) + 1
            return Place(position + 1, run, position + 1 if run >= _SURE else sure)
        for order, places in zip(ORDERS, self._places, strict=True):
            found = places.get(context & _mask(order))
            if found is None:
                continue
            nearest = bisect_left(found, sure)
            if nearest < len(found):
                return Place(found[nearest], order, sure)
            if order == ORDERS[0]:
                return Place(found[-1], order, sure)
        return Place(position + 1, min(run, 0) - 1, sure)

    def _read(self) -> None:
        """Learns where the next READ_TOKENS of the text stand."""
        end = min(self._num_read + READ_TOKENS, len(self._expected))
        for index in range(self._num_read, end):
            self._context = extend(self._context, self._expected[index])
            for order, places in zip(ORDERS, self._places, strict=True):
                if index + 1 >= order:
                    places.setdefault(self._context & _mask(order), []).append(index + 1)
        self._num_read = end


def _mask(order: int) -> int:
    return (1 << TOKEN_BITS * order) - 1
