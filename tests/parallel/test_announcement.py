"""What a step is, as rank 0 tells it."""

from __future__ import annotations

from hypothesis import given, strategies

from outrider.engine.batch import PackedBatch, SessionSpan
from outrider.engine.kv_cache.slots import Move
from outrider.engine.parallel.announcement import decode, encode

numbers = strategies.integers(0, 2**40)
lists = strategies.lists(numbers, max_size=5)
batches = strategies.builds(
    PackedBatch,
    **dict.fromkeys(("token_ids", "positions", "write_cells", "limits", "path_offsets", "path_cells"), lists),
    **dict.fromkeys(("blocks", "rows"), lists),
    **dict.fromkeys(("block_cells", "num_tokens_min"), numbers),
    sessions=strategies.lists(strategies.builds(SessionSpan, *[numbers] * len(SessionSpan._fields)), max_size=3),
)
moves = strategies.lists(strategies.builds(Move, numbers, numbers), max_size=3)


@given(moves, batches)
def test_a_step_survives_the_way(moves: list[Move], batch: PackedBatch) -> None:
    assert decode(encode(moves, batch)) == (moves, batch)
