"""Blocks: who holds them, what is found in them, what is evicted; by example and against cells that hold their text."""

from __future__ import annotations

import pytest

from outrider.engine.jobs import LINE_END, Feed, Job, plan, settle
from outrider.engine.kv_cache.blocks import ROOT_HASH, BlockKey, BlockPool
from outrider.engine.kv_cache.slots import Slot, SlotPool

CELLS = 4
PLENTY = 512


def fed(slot: Slot, line: list[int], parents: list[int] | None = None) -> Feed:
    """One successful pass."""
    parents = parents or []
    done = plan(Job(slot, line, parents, range(100, 100 + len(parents))), PLENTY)
    settle(done)
    return done


def line_of(num_tokens: int, first: int = 0) -> list[int]:
    return list(range(first, first + num_tokens))


# --- the pool ---


def test_blocks_run_out_in_words_and_come_back() -> None:
    pool = BlockPool(2, CELLS)
    taken = [pool.take(), pool.take()]
    assert sorted(taken) == [0, 1]
    with pytest.raises(RuntimeError, match="num_missing_blocks"):
        pool.take()
    pool.release(taken)
    assert pool.num_available == 2


def test_a_published_block_stays_findable_until_its_room_is_needed() -> None:
    pool = BlockPool(2, CELLS)
    block = pool.take()
    key = ROOT_HASH, (1, 2, 3, 4)
    cached = pool.cache(block, key)
    assert cached.block == block
    pool.release([block])
    assert pool.num_available == 2
    other = pool.take()
    assert (pool.find(key), other != block) == (cached, True)
    assert pool.take() == block
    assert pool.find(key) is None


def test_a_second_block_of_the_same_text_gives_way_to_the_first() -> None:
    pool = BlockPool(2, CELLS)
    first, second = pool.take(), pool.take()
    key = ROOT_HASH, (1, 2, 3, 4)
    cached = pool.cache(first, key)
    assert pool.cache(second, key) == cached
    assert pool.num_available == 1
    pool.release([first])
    assert pool.is_held(first)
    pool.release([first])
    assert not pool.is_held(first)


def test_a_block_hash_is_never_given_twice() -> None:
    """Else a block behind an evicted one could be found behind another text."""
    pool = BlockPool(1, CELLS)
    hashes: set[int] = set()
    for token_id in range(5):
        block = pool.take()
        hashes.add(pool.cache(block, (ROOT_HASH, (token_id,) * CELLS)).block_hash)
        pool.release([block])
    assert len(hashes) == 5


def test_the_end_of_a_text_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(4, CELLS)
    slots = SlotPool(2, 8, pool)
    slot = slots.acquire()
    fed(slot, line_of(13))
    slots.release(slot)
    assert pool.num_available == 4
    other = slots.acquire()
    fed(other, line_of(6, first=50))  # takes the free block and evicts one
    slots.release(other)
    again = slots.acquire()
    fed(again, line_of(13))
    assert again.num_cached_tokens == 8


# --- slots ---


def test_a_beginning_in_common_is_held_once_and_not_fed_again() -> None:
    pool = BlockPool(10, CELLS)
    slots = SlotPool(2, 40, pool)
    first, second = slots.acquire(), slots.acquire()
    fed(first, line_of(10))
    done = fed(second, [*line_of(8), 90, 91, 92])
    assert done.token_ids == [90, 91, 92]
    assert first.blocks[:2] == second.blocks[:2]
    assert (second.num_cached_tokens, first.num_cached_tokens) == (8, 0)
    assert (pool.num_tokens_asked, pool.num_tokens_found) == (21, 8)
    assert pool.num_available == 10 - 4


def test_only_slots_with_one_salt_share_a_beginning() -> None:
    pool = BlockPool(20, CELLS)
    slots = SlotPool(5, 40, pool)
    salts = ("", "ann", "ben", "ann", "")
    held = [slots.acquire(cache_salt=salt) for salt in salts]
    assert [slot.num_missing_blocks(line_of(10), 0) for slot in held[:3]] == [3, 3, 3]
    for slot in held:
        fed(slot, line_of(10))
    assert [slot.num_cached_tokens for slot in held] == [0, 0, 0, 8, 8]
    slots.release(held[1])  # an idle block is found by its salt, too, and a slot that is used again forgets its own
    assert fed(slots.acquire(cache_salt="ben"), line_of(9)).num_prefix == 1
    assert [slot.blocks[0] for slot in held[2:]] == [held[2].blocks[0], held[3].blocks[0], held[0].blocks[0]]
    assert len({held[0].blocks[0], held[2].blocks[0], held[3].blocks[0]}) == 3


def test_the_last_token_of_a_line_is_always_fed() -> None:
    pool = BlockPool(10, CELLS)
    slots = SlotPool(2, 40, pool)
    first, second = slots.acquire(), slots.acquire()
    fed(first, line_of(9))
    assert fed(second, line_of(8)).token_ids == [4, 5, 6, 7]


def test_a_block_is_published_when_the_trunk_goes_beyond_it() -> None:
    pool = BlockPool(10, CELLS)
    slots = SlotPool(3, 40, pool)
    slot, line = slots.acquire(), line_of(4)
    fed(slot, line)
    again = fed(slot, line)  # writes the last cell of the block once more
    assert again.cells == [3]
    other = slots.acquire()
    assert fed(other, line_of(6)).num_prefix == 6
    slots.release(other)
    line.append(4)
    fed(slot, line)
    assert fed(slots.acquire(), line_of(6)).num_prefix == 2


def test_what_two_slots_have_computed_at_once_is_kept_once() -> None:
    pool = BlockPool(10, CELLS)
    slots = SlotPool(2, 40, pool)
    both = [slots.acquire(), slots.acquire()]
    for feed in [plan(Job(slot, line_of(10)), PLENTY) for slot in both]:
        settle(feed)
    assert both[0].blocks[:2] == both[1].blocks[:2]
    assert both[0].blocks[2] != both[1].blocks[2]
    assert pool.num_available == 10 - 4


def test_a_line_that_turns_off_in_a_published_block_takes_one_of_its_own() -> None:
    pool = BlockPool(10, CELLS)
    slot = SlotPool(1, 40, pool).acquire()
    fed(slot, line_of(11))
    before = list(slot.blocks)
    done = fed(slot, [*line_of(6), 90, 91])
    assert done.token_ids == [4, 5, 90, 91]
    assert slot.cached_prefix == [*line_of(6), 90, 91]
    assert slot.blocks[0] == before[0]
    assert slot.blocks[1] != before[1]
    fed(slot, line_of(11))  # back to what stayed cached
    assert slot.blocks[:2] == before[:2]


@pytest.mark.parametrize("length", [4, 8])
def test_a_line_that_is_cut_at_the_end_of_a_published_block_gives_it_up(length: int) -> None:
    """Its last token is fed again, and that must not be written there."""
    pool = BlockPool(10, CELLS)
    slot = SlotPool(1, 40, pool).acquire()
    fed(slot, line_of(11))
    done = fed(slot, line_of(length))
    assert done.token_ids == line_of(4, first=length - 4)
    assert len(slot.blocks) == length // CELLS


def test_blocks_behind_the_last_cell_are_given_back() -> None:
    pool = BlockPool(10, CELLS)
    slot, line = SlotPool(1, 40, pool).acquire(), line_of(6)
    fed(slot, line, parents=[LINE_END] * 12)
    assert len(slot.blocks) == 5
    line.append(99)
    fed(slot, line)
    assert len(slot.blocks) == 2
    slot.clear()
    assert pool.num_available == 10


def test_a_slot_that_stands_apart_neither_finds_nor_is_found() -> None:
    pool = BlockPool(10, CELLS)
    slots = SlotPool(3, 40, pool)
    fed(slots.acquire(), line_of(5))
    apart = slots.acquire(shares=False)
    assert fed(apart, line_of(9)).num_prefix == 9
    assert pool.num_tokens_asked == 5
    assert fed(slots.acquire(), line_of(9)).num_prefix == 5


def test_one_job_of_a_step_computes_what_several_have_in_common() -> None:
    pool = BlockPool(20, CELLS)
    slots = SlotPool(4, 40, pool)
    jobs = [Job(slots.acquire(), line) for line in (line_of(11), line_of(11), line_of(6), line_of(9, first=50))]
    fed_tokens: list[list[int]] = []
    for _ in range(2):
        computing: set[BlockKey] = set()
        feeds = [plan(job, PLENTY, computing) for job in jobs]
        fed_tokens.append([feed.num_new_prefix for feed in feeds])
        for feed in feeds:
            settle(feed)
    assert fed_tokens == [[11, 0, 0, 9], [0, 3, 2, 0]]


def test_a_job_waits_for_another_as_long_as_that_takes_and_no_longer() -> None:
    slots = SlotPool(2, 40, BlockPool(20, CELLS))
    leader, follower = Job(slots.acquire(), line_of(30)), Job(slots.acquire(), [*line_of(20), 90, 91])
    num_fed: list[tuple[int, int]] = []
    for _ in range(4):
        computing: set[BlockKey] = set()
        feeds = [plan(leader, 7, computing), plan(follower, 7, computing)]
        num_fed.append((feeds[0].num_new_prefix, feeds[1].num_new_prefix))
        for feed in feeds:
            settle(feed)
    assert num_fed == [(7, 0), (7, 0), (7, 0), (7, 2)]


def test_a_job_goes_on_alone_when_the_one_it_waited_for_is_gone() -> None:
    slots = SlotPool(2, 40, BlockPool(20, CELLS))
    leader, follower = Job(slots.acquire(), line_of(30)), Job(slots.acquire(), line_of(30))
    computing: set[BlockKey] = set()
    feeds = [plan(leader, 6, computing), plan(follower, 6, computing)]
    for feed in feeds:
        settle(feed)
    slots.release(leader.slot)
    assert plan(follower, 6, set()).token_ids == line_of(6, first=4)


def test_slots_that_have_begun_a_block_do_not_wait_for_each_other() -> None:
    slots = SlotPool(2, 40, BlockPool(20, CELLS))
    jobs = [Job(slots.acquire(), line_of(9)) for _ in range(2)]
    for feed in [plan(job, 2) for job in jobs]:
        settle(feed)
    computing: set[BlockKey] = set()
    assert [plan(job, 7, computing).num_new_prefix for job in jobs] == [7, 7]


def test_a_line_that_ends_with_what_was_found_cached_is_computed_from_the_last_block_on() -> None:
    slots = SlotPool(2, 40, BlockPool(20, CELLS))
    fed(slots.acquire(), line_of(2 * CELLS + 1))
    slot = slots.acquire()
    assert slot.align(line_of(2 * CELLS + 1)) == []
    assert len(slot.cached_prefix) == 2 * CELLS
    assert plan(Job(slot, line_of(2 * CELLS)), PLENTY).cells == list(range(CELLS, 2 * CELLS))


# --- how many blocks a job may still take ---


def test_a_job_needs_blocks_for_its_line_and_its_tree() -> None:
    slot, line = SlotPool(1, 40, BlockPool(20, CELLS)).acquire(), line_of(9)
    assert slot.num_missing_blocks(line, 0) == 3
    assert slot.num_missing_blocks(line, 3) == 3
    assert slot.num_missing_blocks(line, 4) == 4
    fed(slot, line)
    assert slot.num_missing_blocks(line, 3) == 0
    assert slot.num_missing_blocks(line_of(9), 0) == 2  # another list: it may contradict what is cached


def test_held_nodes_of_earlier_jobs_count_too() -> None:
    slot, line = SlotPool(1, 40, BlockPool(20, CELLS)).acquire(), line_of(4)
    fed(slot, line, parents=[LINE_END] * 12)
    assert slot.num_missing_blocks(line, 1) == 1
    settle(plan(Job(slot, line, [LINE_END], [99]), PLENTY))
    assert len(slot.blocks) == 5


def test_what_others_hold_need_not_be_taken_and_what_nobody_holds_must() -> None:
    pool = BlockPool(20, CELLS)
    slots = SlotPool(2, 40, pool)
    holder, slot = slots.acquire(), slots.acquire()
    fed(holder, line_of(9))
    assert slot.num_missing_blocks(line_of(20), 0) == 3
    slots.release(holder)
    assert slot.num_missing_blocks(line_of(20), 0) == 5


def test_no_job_needs_more_than_a_slot_may_use() -> None:
    slot = SlotPool(1, 40, BlockPool(100, CELLS)).acquire()
    assert slot.num_missing_blocks(line_of(40), 10_000) == slot.num_cells // CELLS
