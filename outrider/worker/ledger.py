"""Ledger: numbers that are noted of each step of a session, in one array, so that a step costs an append."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

STEPS_TOLD_MAX = 256
"""Steps that are told one by one, the first of a session: those of some hundred tokens. Sums are of all steps."""


class Column(NamedTuple):
    """A number that each step has, and the names by which it is told."""

    total: str = ""
    """Name of the sum; empty if that is not told."""
    each: str = ""
    """Name of the list of them, step by step; empty if that is not told."""
    is_count: bool = True
    """Whether it is an integer."""


class Ledger:
    """A row for each step."""

    def __init__(self, columns: Sequence[Column], num_rows: str = "") -> None:
        """`num_rows` is the name by which the number of rows is told; empty if it is not."""
        self._columns = columns
        self._num_rows = num_rows
        self._numbers = array("d")

    def note(self, *row: float) -> None:
        """A step, with a number for each column. To be cheap: a session has thousands."""
        self._numbers.extend(row)

    def attributes(self) -> dict[str, int | float | Sequence[int] | Sequence[float]]:
        """What a span says of all steps."""
        width = len(self._columns)
        found: dict[str, int | float | Sequence[int] | Sequence[float]] = {}
        if self._num_rows:
            found[self._num_rows] = len(self._numbers) // width
        for place, (total, each, is_count) in enumerate(self._columns):
            numbers = self._numbers[place::width]
            if total:
                found[total] = int(sum(numbers)) if is_count else sum(numbers)
            if each:
                told = numbers[:STEPS_TOLD_MAX]
                found[each] = [*map(int, told)] if is_count else told.tolist()
        return found
