"""Which steps are measured: every number of sessions with every number of tokens below every context that has room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

from bench.gpu.floor import Row
from outrider.engine.gpu.work_list import PAGE_CELLS
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX

LINE_TOKENS_MIN = 16
"""The context of steps that have next to none: what they take is not for attention."""


class Plan(NamedTuple):
    """The rows of one model, in the order in which they are measured: texts only grow as long as their context does."""

    rows: Sequence[Row]
    no_room: Sequence[Row]
    """Those whose keys and values find no room."""
    kv_tokens: int
    """Room that the KV cache is given."""


class Growth(NamedTuple):
    """How a session's room goes beyond its context."""

    num_rounds: int
    """Steps of a row, those that warm up included."""
    num_tokens: int
    """That a round adds to a line at most."""

    @property
    def line_tokens(self) -> int:
        """That a line may gain in a row."""
        return self.num_rounds * self.num_tokens

    def cells(self, num_context_tokens: int) -> int:
        """Of a session: its line, its tree, and the rest of its last block."""
        return num_context_tokens + self.line_tokens + TREE_CELLS_MAX + PAGE_CELLS


def plan(
    sessions: Iterable[int], tokens: Sequence[int], contexts: Iterable[int], growth: Growth, kv_tokens_max: int
) -> Plan:
    """All rows, parted into those that `kv_tokens_max` tokens of keys and values suffice for and the others."""
    rows = [
        Row(num_sessions, num_tokens, num_context_tokens)
        for num_context_tokens, num_sessions, num_tokens in product(sorted(contexts), sorted(sessions), sorted(tokens))
    ]
    needed = {row: row.num_sessions * growth.cells(row.num_context_tokens) for row in rows}
    fitting = [row for row in rows if needed[row] <= kv_tokens_max]
    return Plan(
        fitting,
        [row for row in rows if row not in fitting],
        max((needed[row] for row in fitting), default=0),
    )
