"""Masks of grammars, computed on a thread of their own beside the forward pass whose logits they are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from outrider.engine.sample.allowed import Allowed, allowed_of
from outrider.engine.sample.sampler import Row
from outrider.grammar.state import GrammarState


class Constrained(NamedTuple):
    """The rows of one part of a step, and the grammar that they are for."""

    part: int
    state: GrammarState
    rows: Sequence[Row]


class MaskThread:
    """Device thread only, but for what its own thread does meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "masks")

    def beside(self, constrained: Sequence[Constrained]) -> Masks:
        """Begins to compute the masks of a step, whose forward pass is the body of the `with` over them."""
        return Masks(self._thread, constrained)


class Masks:
    """Those of one step. Nobody else may ask its grammars anything before the end of the `with`."""

    def __init__(self, thread: ThreadPoolExecutor, constrained: Sequence[Constrained]) -> None:
        self._constrained = constrained
        self._computed = thread.submit(_computed, constrained) if constrained else None

    def __enter__(self) -> Masks:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until nothing is computed any more."""
        if self._computed is not None:
            self._computed.exception()

    def of(self, num_rows: Sequence[int | None]) -> Allowed | None:
        """The masks of a step whose parts have so many rows, or None for one without any.

        Raises RuntimeError if a grammar cannot be followed.
        """
        if self._computed is None:
            return None
        indices: list[int] = []
        found: list[bytes] = []
        first_row_of = list(_running_sum(num_rows))
        for each, masks in zip(self._constrained, self._computed.result(), strict=True):
            if num_rows[each.part] is not None:
                first_row = first_row_of[each.part]
                indices += range(first_row, first_row + len(masks))
                found += masks
        return allowed_of(indices, found)


def _computed(constrained: Sequence[Constrained]) -> list[list[bytes]]:
    return [[each.state.mask(row.path) for row in each.rows] for each in constrained]


def _running_sum(num_rows: Sequence[int | None]) -> Iterator[int]:
    total = 0
    for num in num_rows:
        yield total
        total += num or 0
