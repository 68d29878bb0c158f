"""What kernels are told of a batch is what the batch says: nothing is left out, and nothing is there twice."""

from __future__ import annotations

import random

import pytest

from outrider.engine.batch import PackedBatch
from outrider.engine.gpu import work_list as lists
from outrider.engine.gpu.work_list import (
    ITEM,
    PAGE_CELLS,
    PART_OFFSETS,
    SIGHT,
    WORD_0,
    WORD_BITS,
    WORDS,
    WRITE_CELLS,
    WorkList,
    num_parts,
    tile_tokens,
    work_list,
)
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from tests.engine.gpu.twin import seen
from tests.engine.histories import random_line
from tests.engine.layers import Layer, packed, random_jobs

WINDOWS = (None, 1, 2, 30, 400)


def layer_of_pages() -> Layer:
    return Layer(block_cells=PAGE_CELLS, max_context=1500, num_blocks=300)


def items_of(work: WorkList) -> list[list[int]]:
    first = work.layout.first_item
    (count, *rest) = work.numbers[first : first + ITEM]
    assert (count, set(rest)) == (work.num_items, {0})
    return [work.numbers[first + item * ITEM :][:ITEM].tolist() for item in range(1, count + 1)]


def what_is_told(work: WorkList, window: int) -> list[list[int]]:
    """Of each token the cells in the KV cache that the list says it sees, by its parts; each part once."""
    found: list[list[int]] = [[] for _ in range(work.layout.num_tokens)]
    parts: set[int] = set()
    for first_page, first, count, first_cell, end_cell, first_part, token_parts, _ in items_of(work):
        assert first_cell % lists.SPLIT_CELLS == 0
        assert first_cell < end_cell <= first_cell + lists.SPLIT_CELLS
        for index, token in enumerate(range(first, first + count)):
            part = first_part + index * token_parts
            offset = work.numbers[PART_OFFSETS * work.layout.row + token]
            assert part == offset + first_cell // lists.SPLIT_CELLS
            assert part not in parts
            parts.add(part)
            sight = work.numbers[work.layout.first_sight(window) + token * SIGHT :][:SIGHT]
            lowest, limit, *words = sight[: WORD_0 + WORDS]
            for cell in range(first_cell, end_cell):
                behind = cell - limit
                is_node = 0 <= behind < TREE_CELLS_MAX and words[behind // WORD_BITS] >> behind % WORD_BITS & 1
                if lowest <= cell < limit or is_node:
                    page = work.numbers[first_page + cell // PAGE_CELLS]
                    found[token].append(page * PAGE_CELLS + cell % PAGE_CELLS)
    assert parts == set(range(work.num_parts))
    return found


@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_each_token_sees_what_its_batch_says(tokens: int) -> None:
    for seed in range(3):
        layer, rng = layer_of_pages(), random.Random(seed)
        jobs = random_jobs(layer, rng, num_sessions=1 + seed, max_new=30, max_nodes=9, max_held=1300)
        batch = packed(layer, jobs, seed % 3)
        work = work_list(batch, WINDOWS, tokens)
        for index, window in enumerate(WINDOWS):
            for told, wanted in zip(what_is_told(work, index), seen(batch, window), strict=True):
                assert sorted(told) == sorted(wanted)
        assert work.num_parts <= num_parts(batch)
        assert work.num_items <= work.num_parts
        assert len(work.numbers) == work.layout.end(work.num_items, num_pages(batch))
        assert work.numbers[WRITE_CELLS * work.layout.row :][: len(batch.write_cells)].tolist() == batch.write_cells


def num_pages(batch: PackedBatch) -> int:
    return sum(-(-session.num_cells // PAGE_CELLS) for session in batch.sessions)


def test_an_item_of_a_prompt_ends_where_its_tile_does() -> None:
    """Tokens of a tile see no cell of later tiles, so nothing is read there."""
    layer = layer_of_pages()
    batch = packed(layer, [Job(layer.pool.acquire(), random_line(512, seed=1))])
    ends = {first: end for _, first, _, _, end, *_ in items_of(work_list(batch, (None,), 16))}
    assert ends == {first: first + 16 for first in range(0, 512, 16)}


def test_a_batch_of_padding_alone_has_no_items() -> None:
    batch = PackedBatch()
    batch.pad(4, 77)
    work = work_list(batch, (None, 7), 16)
    assert (work.num_items, work.num_parts) == (0, 0)
    assert work.numbers[WRITE_CELLS * work.layout.row :][:4].tolist() == [77] * 4
    assert work.numbers[PART_OFFSETS * work.layout.row :][:5].tolist() == [0] * 5


def test_a_tree_that_no_mask_holds_is_refused_in_words() -> None:
    layer = layer_of_pages()
    line = random_line(9, seed=1)
    num_nodes = TREE_CELLS_MAX + 1
    job = Job(layer.held(line), line, range(LINE_END, num_nodes - 1), range(num_nodes), wanted=[num_nodes - 1])
    with pytest.raises(ValueError, match=f"within {TREE_CELLS_MAX}"):
        work_list(packed(layer, [job]), (None,), 16)


def test_parts_begin_where_kernels_may_read_them() -> None:
    for num_tokens in range(1, 20):
        layout = lists.Layout(num_tokens, 2)
        starts = layout.row, layout.first_sight(0), layout.first_sight(1), layout.first_item
        assert all(start % 4 == 0 for start in starts)
        assert layout.row > num_tokens


def test_tiles_have_the_rows_of_the_largest_group() -> None:
    assert tile_tokens([4], 128) == tile_tokens([4], 64) == 16
    assert tile_tokens([7, 7], 128) == 9
    assert tile_tokens([1, 8], 128) == 8
    assert tile_tokens([71], 128) == 1
    assert tile_tokens([4], 256) == 8
