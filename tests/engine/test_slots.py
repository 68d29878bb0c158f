"""Slots and jobs by themselves: what is kept, moved, dropped and fed, and that no cell is ever mistaken for another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.engine.jobs import LINE_END, Feed, Job, plan, settle
from outrider.engine.kv_cache.blocks import BlockPool
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX, Move, Slot, SlotPool, TreeCell
from tests.engine.cells import Cells, path_to, random_tree

MAX_CONTEXT = 64
PLENTY = 512
"""A budget that no line of these tests exceeds."""


def fresh_slot() -> Slot:
    return SlotPool(1, MAX_CONTEXT, BlockPool(20, 16)).acquire()


def feed(
    slot: Slot,
    line: Sequence[int],
    parents: Sequence[int] = (),
    token_ids: Sequence[int] = (),
    wanted: Sequence[int] = (LINE_END,),
) -> Feed:
    """One successful pass."""
    done = plan(Job(slot, line, parents, token_ids, wanted), PLENTY)
    settle(done)
    return done


# 12 -+- 1 - 3 - 4     cells  2 -+- 3 - 5 - 6
#     +- 2 - 5                   +- 4 - 7
PARENTS = [LINE_END, LINE_END, 0, 2, 1]
TOKEN_IDS = [1, 2, 3, 4, 5]


def slot_with_tree() -> tuple[Slot, list[int]]:
    slot, line = fresh_slot(), [10, 11, 12]
    feed(slot, line, PARENTS, TOKEN_IDS)
    return slot, line


def test_a_tree_stands_behind_its_line() -> None:
    slot, _ = slot_with_tree()
    assert slot.cached_prefix == [10, 11, 12]
    assert slot.cells == {
        3: TreeCell(2, 1, 3),
        4: TreeCell(2, 2, 3),
        5: TreeCell(3, 3, 4),
        6: TreeCell(5, 4, 5),
        7: TreeCell(4, 5, 4),
    }
    assert slot.end_cell == 8


# --- align ---


def test_a_node_that_stands_in_place_becomes_trunk_without_a_move() -> None:
    slot, line = slot_with_tree()
    line.append(1)
    assert slot.align(line) == []
    assert slot.cached_prefix == [10, 11, 12, 1]
    assert slot.cells == {5: TreeCell(3, 3, 4), 6: TreeCell(5, 4, 5)}


def test_a_promoted_node_moves_and_its_children_follow_it() -> None:
    slot, line = slot_with_tree()
    line.append(2)
    assert slot.align(line) == [Move(4, 3)]
    assert slot.cells == {7: TreeCell(3, 5, 4)}
    assert slot.find(3, 5) == 7
    assert slot.find(4, 5) is None


def test_a_whole_path_is_promoted_at_once() -> None:
    slot, line = slot_with_tree()
    line.extend([1, 3, 4])
    assert slot.align(line) == [Move(5, 4), Move(6, 5)]
    assert slot.cached_prefix == line
    assert slot.cells == {}
    assert slot.end_cell == 6


def test_a_survivor_in_the_way_of_the_trunk_moves_behind_it() -> None:
    slot, line = fresh_slot(), [10, 11, 12]
    feed(slot, line)
    slot.hold(5, TreeCell(2, 1, 3))
    slot.hold(3, TreeCell(5, 2, 4))
    slot.hold(4, TreeCell(3, 3, 5))
    slot.hold(6, TreeCell(2, 9, 3))
    line.append(1)
    assert sorted(slot.align(line)) == [Move(3, 5), Move(5, 3)]
    assert slot.cells == {5: TreeCell(3, 2, 4), 4: TreeCell(5, 3, 5)}


def test_a_line_that_leaves_the_tree_keeps_the_path_so_far_and_drops_the_rest() -> None:
    slot, line = slot_with_tree()
    line.extend([2, 99])
    assert slot.align(line) == [Move(4, 3)]
    assert slot.cached_prefix == [10, 11, 12, 2]
    assert slot.cells == {}
    line.append(5)
    assert slot.align(line) == []
    assert slot.cached_prefix == [10, 11, 12, 2]


@pytest.mark.parametrize(
    ("line", "num_kept"),
    [([10, 99, 12], 1), ([99], 0), ([10, 11], 2), ([10, 11, 99, 1, 3], 2)],
)
def test_a_contradiction_drops_everything_from_there_on(line: list[int], num_kept: int) -> None:
    slot, _ = slot_with_tree()
    assert slot.align(line) == []
    assert slot.cached_prefix == line[:num_kept]
    assert slot.cells == {}
    assert slot.find(2, 1) is None


def test_the_same_line_in_another_list_keeps_everything() -> None:
    slot, line = slot_with_tree()
    held = dict(slot.cells)
    assert slot.align([*line]) == []
    assert slot.cells == held
    assert slot.align([*line, 1]) == []
    assert slot.cached_prefix == [*line, 1]


class Watched(list[int]):
    """A line that counts how many of its tokens are read."""

    num_read = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.num_read += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("all of the line is read")


def test_a_step_reads_of_its_line_what_is_new_however_long_it_is() -> None:
    slot, line = SlotPool(1, 4096, BlockPool(280, 16)).acquire(), Watched(range(4000))
    settle(plan(Job(slot, line), len(line)))
    feed(slot, line)  # compares what that pass has fed
    for token_id in range(40):
        line.append(token_id)
        line.num_read = 0
        assert slot.num_missing_blocks(line, 3) <= 1
        done = feed(slot, line, [LINE_END], [token_id + 1], [LINE_END, 0])
        assert (done.num_new_prefix, slot.align(line)) == (1 if token_id == 0 else 0, [])
        assert line.num_read <= 2 * slot.block_cells


def test_a_cleared_slot_holds_nothing() -> None:
    slot, line = slot_with_tree()
    slot.clear()
    assert (slot.cached_prefix, slot.cells, slot.end_cell) == ([], {}, 0)
    assert slot.find(2, 1) is None
    assert feed(slot, line).token_ids == line


# --- plan ---


def test_nothing_held_is_fed_twice() -> None:
    slot, line = slot_with_tree()
    line.append(1)
    done = feed(slot, line, [LINE_END, 0, 0], [3, 4, 6], wanted=[2])
    assert (done.token_ids, done.positions, done.cells) == ([6], [5], [4])
    assert done.nodes == [(4, TreeCell(5, 6, 5))]
    assert done.rows == [0]


def test_held_nodes_that_are_wanted_are_fed_again_in_their_cells() -> None:
    slot, line = slot_with_tree()
    held = dict(slot.cells)
    done = feed(slot, line, PARENTS, TOKEN_IDS, wanted=[3, 0])
    assert (done.token_ids, done.positions, done.cells) == ([1, 4], [3, 5], [3, 6])
    assert done.rows == [1, 0]
    assert slot.cells == held


def test_a_held_line_whose_logits_are_wanted_feeds_its_last_token_again() -> None:
    slot, line = slot_with_tree()
    held = dict(slot.cells)
    done = feed(slot, line)
    assert (done.token_ids, done.positions, done.cells) == ([12], [2], [2])
    assert (done.num_prefix, done.num_new_prefix, done.rows) == (1, 0, [0])
    assert slot.cached_prefix == line
    assert slot.cells == held


def test_rows_stand_in_the_order_in_which_they_are_wanted() -> None:
    slot, line = fresh_slot(), [10, 11, 12]
    done = feed(slot, line, [LINE_END, 0], [1, 2], wanted=[1, LINE_END, 0])
    assert done.token_ids == [10, 11, 12, 1, 2]
    assert done.rows == [4, 2, 3]


def test_a_line_is_fed_in_chunks_and_its_tree_in_the_last() -> None:
    slot, line = fresh_slot(), list(range(10))
    job = Job(slot, line, [LINE_END, 0], [1, 2], wanted=[LINE_END, 1])
    for start in (0, 4):
        part = plan(job, max_tokens=4)
        assert (part.token_ids, part.cells) == (line[start : start + 4], list(range(start, start + 4)))
        assert (part.complete, part.rows, part.nodes) == (False, [], [])
        settle(part)
    last = plan(job, max_tokens=4)
    assert last.token_ids == [8, 9, 1, 2]
    assert (last.complete, last.num_prefix, last.num_new_prefix, last.rows) == (True, 2, 2, [1, 3])


def test_a_budget_that_is_just_enough_completes_the_line() -> None:
    slot, line = fresh_slot(), list(range(8))
    assert not plan(Job(slot, line), max_tokens=7).complete
    assert plan(Job(slot, line), max_tokens=8).complete


def test_what_is_planned_but_not_settled_is_planned_again() -> None:
    slot, line = slot_with_tree()
    line.append(7)
    job = Job(slot, line, [LINE_END], [8], wanted=[0])
    first, again = plan(job, PLENTY), plan(job, PLENTY)
    assert (again.token_ids, again.cells, again.nodes) == (first.token_ids, first.cells, first.nodes)


# --- bounds ---


def test_slots_share_no_block_that_is_not_cached() -> None:
    pool = SlotPool(3, MAX_CONTEXT, BlockPool(12, 16))
    slots = [pool.acquire() for _ in range(3)]
    for slot in slots:
        feed(slot, list(range(40)), [LINE_END], [1], wanted=[0])
    assert [slot.blocks[:2] for slot in slots] == [[0, 1]] * 3
    private = [block for slot in slots for block in slot.blocks[2:]]
    assert len(private) == len({0, 1, *private}) - 2 == 3
    assert {slot.num_cells for slot in slots} == {MAX_CONTEXT + TREE_CELLS_MAX}


def test_slots_run_out_and_come_back_empty() -> None:
    pool = SlotPool(2, MAX_CONTEXT, BlockPool(4, 16))
    first, second = pool.acquire(), pool.acquire()
    feed(first, [1, 2, 3], [LINE_END], [4])
    with pytest.raises(SlotsExhaustedError, match="all 2 slots are taken"):
        pool.acquire()
    pool.release(first)
    assert pool.num_free == 1
    assert pool.acquire() is first is not second
    assert (first.cached_prefix, first.cells) == ([], {})


def test_the_longest_line_has_room_for_the_largest_tree_and_nothing_more() -> None:
    slot, line = fresh_slot(), list(range(MAX_CONTEXT))
    chain = range(LINE_END, TREE_CELLS_MAX)
    done = feed(slot, line, chain[:-1], range(TREE_CELLS_MAX), wanted=[TREE_CELLS_MAX - 1])
    assert max(done.cells) == slot.num_cells - 1
    with pytest.raises(ValueError, match=f"a tree of {TREE_CELLS_MAX + 1} nodes needs {slot.num_cells + 1} cells"):
        plan(Job(slot, line, chain, range(TREE_CELLS_MAX + 1), wanted=[0]), PLENTY)


def test_held_nodes_need_no_second_cell() -> None:
    slot, line = fresh_slot(), list(range(MAX_CONTEXT))
    siblings = [LINE_END] * TREE_CELLS_MAX
    feed(slot, line, siblings[1:], range(TREE_CELLS_MAX - 1), wanted=[0])
    done = feed(slot, line, siblings, range(TREE_CELLS_MAX), wanted=[TREE_CELLS_MAX - 1])
    assert done.cells == [slot.num_cells - 1]


def test_held_nodes_of_earlier_jobs_count_too() -> None:
    slot, line = fresh_slot(), list(range(MAX_CONTEXT))
    feed(slot, line, [LINE_END] * TREE_CELLS_MAX, range(TREE_CELLS_MAX), wanted=[0])
    with pytest.raises(ValueError, match="keep lines within the context"):
        plan(Job(slot, line, [LINE_END], [TREE_CELLS_MAX], wanted=[0]), PLENTY)


def test_a_line_never_runs_into_the_next_slot() -> None:
    slot = fresh_slot()
    with pytest.raises(ValueError, match=f"a line of {slot.num_cells + 1} tokens"):
        plan(Job(slot, list(range(slot.num_cells + 1))), PLENTY)


# --- histories ---


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_row_attends_to_its_own_text(seed: int) -> None:
    rng = random.Random(seed)
    slot = SlotPool(1, 400, BlockPool(164, 4)).acquire()
    cells = Cells()
    for _ in range(20):
        slot.clear()
        line = [rng.randrange(3) for _ in range(rng.randint(1, 12))]
        held: set[tuple[int, ...]] = set()
        for job_index in range(15):
            parents, token_ids = random_tree(rng)
            wanted = rng.sample(range(LINE_END, len(parents)), rng.randint(1, len(parents) + 1))
            job = Job(slot, line, parents, token_ids, wanted)
            paths = [path_to(node, parents, token_ids) for node in range(len(parents))]
            while True:
                done = plan(job, max_tokens=rng.randint(1, 9))
                texts = cells.run([done])[0]
                if done.complete:
                    break
                assert texts == []
            assert texts == [(*line, *path_to(node, parents, token_ids)) for node in wanted]
            needed = {(*line, *path) for node, path in enumerate(paths) if node in wanted or (*line, *path) not in held}
            assert {cells.text(slot, cell) for cell, _ in done.nodes} == needed
            held = {text for text in held if text[: len(line)] == tuple(line)} | {(*line, *path) for path in paths}
            assert {cells.text(slot, cell) for cell in slot.cells} == held
            match rng.randrange(8):
                case 0:
                    line = [*line[: rng.randint(0, len(line) - 1)], 100 + job_index]
                    held.clear()
                case 1 | 2:
                    pass
                case _:
                    line.extend(rng.randrange(3) for _ in range(rng.randint(1, 4)))
                    held = {text for text in held if text[: len(line)] == tuple(line) and len(text) > len(line)}
