"""A step as one list of integers: what rank 0 tells the ranks that take it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from outrider.engine.batch import PackedBatch, SessionSpan
from outrider.engine.kv_cache.slots import Move

_LISTS = ("token_ids", "positions", "write_cells", "limits", "path_offsets", "path_cells", "blocks", "rows")
"""The fields of a packed batch that are lists of integers."""


def encode(moves: Sequence[Move], batch: PackedBatch) -> list[int]:
    """Lengths first, then what has them. Cells are those of the caches, which are laid out alike on all ranks."""
    lists: list[Iterable[int]] = [chain(*moves), chain(*batch.sessions), *(getattr(batch, name) for name in _LISTS)]
    parts = [list(part) for part in lists]
    return [batch.block_cells, batch.num_tokens_min, *map(len, parts), *chain(*parts)]


def decode(numbers: Iterable[int]) -> tuple[list[Move], PackedBatch]:
    """What `encode` was given."""
    reader = iter(numbers)
    block_cells, num_tokens_min, *lengths = islice(reader, 4 + len(_LISTS))
    moves, sessions, *parts = (list(islice(reader, length)) for length in lengths)
    batch = PackedBatch(
        sessions=[SessionSpan(*span) for span in _in_groups(sessions, len(SessionSpan._fields))],
        block_cells=block_cells,
        num_tokens_min=num_tokens_min,
        **dict(zip(_LISTS, parts, strict=True)),
    )
    return [Move(*move) for move in _in_groups(moves, len(Move._fields))], batch


def _in_groups(numbers: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    return zip(*[iter(numbers)] * size, strict=True)
