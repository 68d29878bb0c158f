"""Combinations of values in which every two meet, where all combinations would be too many to test."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

_CANDIDATES = 50
"""Random rows of which the one is taken in which most values meet that have not met yet."""


def meeting(*columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few rows, the same each time, of one value from each column, in which every two values of different columns meet
    (pairwise testing)."""
    rng = random.Random(0)
    missing = {
        pair
        for (first, some), (second, others) in combinations(enumerate(columns), 2)
        for pair in product(product([first], range(len(some))), product([second], range(len(others))))
    }
    rows: list[tuple[int, ...]] = []
    while missing:
        candidates = [tuple(rng.randrange(len(column)) for column in columns) for _ in range(_CANDIDATES)]
        met = {row: missing.intersection(combinations(enumerate(row), 2)) for row in candidates}
        best = max(met, key=lambda row: len(met[row]))
        if met[best]:
            rows.append(best)
            missing -= met[best]
    return [tuple(column[index] for column, index in zip(columns, row, strict=True)) for row in rows]
