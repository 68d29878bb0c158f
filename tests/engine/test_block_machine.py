"""Blocks under any order of what slots do: nothing is lost, shared wrongly or held twice."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outrider.engine.jobs import LINE_END, Feed, Job, plan
from outrider.engine.kv_cache.blocks import ROOT_HASH, BlockKey, BlockPool
from outrider.engine.kv_cache.slots import Slot, SlotPool
from tests.engine.cells import Cells, path_to, random_tree

CELLS = 4
BEGINNINGS = [[0] * 9, [0] * 12, [0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 2]]
SALTS = ["", "ann"]
NUM_BLOCKS = 30
NUM_SLOTS = 4


class Sharing(RuleBasedStateMachine):
    """Sessions that begin alike, over few blocks. Cells hold the text up to their token; see `Cells`."""

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pool = BlockPool(NUM_BLOCKS, CELLS)
        self.slots = SlotPool(NUM_SLOTS, 40, self.pool)
        self.cells = Cells()
        self.sessions: list[tuple[Slot, list[int]]] = []

    @precondition(lambda self: len(self.sessions) < NUM_SLOTS)
    @rule(beginning=st.sampled_from(BEGINNINGS), num_more=st.integers(0, 9), cache_salt=st.sampled_from(SALTS))
    def open(self, beginning: list[int], num_more: int, cache_salt: str) -> None:
        line = [*beginning, *(self.rng.randrange(2) for _ in range(num_more))]
        self.sessions.append((self.slots.acquire(cache_salt=cache_salt), line))

    @precondition(lambda self: self.sessions)
    @rule()
    def close(self) -> None:
        slot, _ = self.sessions.pop(self.rng.randrange(len(self.sessions)))
        self.slots.release(slot)

    @precondition(lambda self: self.sessions)
    @rule()
    def forget(self) -> None:
        self.rng.choice(self.sessions)[0].clear()

    @precondition(lambda self: self.sessions)
    @rule()
    def contradict(self) -> None:
        place = self.rng.randrange(len(self.sessions))
        slot, line = self.sessions[place]
        self.sessions[place] = slot, [*line[: self.rng.randint(1, len(line))], self.rng.randrange(2)]

    @precondition(lambda self: self.sessions)
    @rule(max_tokens=st.integers(1, 20), until_done=st.booleans())
    def step(self, max_tokens: int, until_done: bool) -> None:
        self.rng.shuffle(self.sessions)
        jobs: list[Job] = []
        num_missing, num_available = 0, self.pool.num_available
        for slot, line in self.sessions:
            parents, token_ids = random_tree(self.rng)
            wanted = self.rng.sample(range(LINE_END, len(parents)), self.rng.randint(1, len(parents) + 1))
            job = Job(slot, line, parents, token_ids, wanted)
            if num_missing + slot.num_missing_blocks(line, len(parents)) > num_available:
                break
            num_missing += slot.num_missing_blocks(line, len(parents))
            jobs.append(job)
        for _ in range(200 if until_done else 1):
            jobs = self._run(jobs, max_tokens)
            if not jobs:
                break
        assert not (until_done and jobs), "jobs wait for each other"
        assert num_available - self.pool.num_available <= num_missing
        for slot, line in self.sessions:
            if slot.cached_prefix == line:
                line.extend(self.rng.randrange(2) for _ in range(self.rng.randint(0, 4)) if len(line) < 30)

    def _run(self, jobs: list[Job], max_tokens: int) -> list[Job]:
        """One pass. Returns the jobs that are not done."""
        computing: set[BlockKey] = set()
        feeds: list[Feed] = []
        for job in jobs:
            feeds.append(plan(job, max(max_tokens, 0), computing))
            max_tokens -= feeds[-1].num_prefix
        for feed, texts in zip(feeds, self.cells.run(feeds), strict=True):
            job = feed.job
            if feed.complete:
                paths = [path_to(node, job.parents, job.token_ids) for node in job.wanted]
                assert texts == [(*job.line, *path) for path in paths]
        return [feed.job for feed in feeds if not feed.complete]

    @invariant()
    def every_block_is_free_or_idle_or_held(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        holders = Counter(block for slot, _ in self.sessions for block in slot.blocks)
        assert pool._num_holders == [holders[block] for block in range(NUM_BLOCKS)]
        assert sorted([*pool._free, *pool._idle, *holders]) == list(range(NUM_BLOCKS))
        assert not pool._keys.keys() & set(pool._free)
        assert pool._idle.keys() == pool._keys.keys() - holders.keys()
        assert {cached.block: key for key, cached in pool._cached.items()} == pool._keys

    @invariant()
    def no_block_is_held_under_two_salts(self) -> None:
        if hasattr(self, "pool"):
            roots = {(block, slot.root) for slot, _ in self.sessions for block in slot.blocks}
            assert len({block for block, _ in roots}) == len(roots)

    @invariant()
    def all_that_is_published_can_be_reached(self) -> None:
        """What a block stands on is evicted after it."""
        if hasattr(self, "pool"):
            hashes = {ROOT_HASH, *SALTS, *(cached.block_hash for cached in self.pool._cached.values())}
            assert {block_hash for block_hash, _ in self.pool._cached} <= hashes


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=40)
