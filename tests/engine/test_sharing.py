"""Sessions over few blocks: what they share, what is taken from them, and that no logit can tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.attention.interface import model_facts
from outrider.engine.batch import PackedBatch
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from outrider.engine.step_times import measure
from tests.engine import histories
from tests.engine.histories import Rig, check_fork, forked, random_line
from tests.engine.tiny_models import FAMILIES, build

BLOCK_CELLS = 16
MAX_CONTEXT = 128
ONE_SESSION = MAX_CONTEXT + TREE_CELLS_MAX
"""The smallest budget, in tokens."""


class Fed:
    """Counts the tokens of an engine's forward passes."""

    def __init__(self, engine: Engine) -> None:
        self.num_tokens: list[int] = []
        self._forward = engine._model.forward
        setattr(engine._model, "forward", self.forward)  # noqa: B010

    def forward(self, batch: PackedBatch) -> Tensor:
        self.num_tokens.append(len(batch.token_ids))
        return self._forward(batch)


def small_engine(kv_tokens: int, *, max_sessions: int = 4, family: str = "llama") -> Engine:
    return Engine(build(family), max_sessions=max_sessions, max_context=MAX_CONTEXT, kv_tokens=kv_tokens)


# --- the same logits ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beginning_that_another_session_has_computed(family: str) -> None:
    rig = Rig(family)
    fed = Fed(rig.engine)
    histories.a_beginning_that_another_session_has_computed(rig)
    assert fed.num_tokens == [32 + 8, 3 + 9 + 3, 1 + 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_lie_between_those_of_others(family: str) -> None:
    histories.blocks_that_lie_between_those_of_others(Rig(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_that_had_to_forget_goes_on(family: str) -> None:
    rig = Rig(family)
    fed = Fed(rig.engine)
    histories.a_session_that_had_to_forget_goes_on(rig)
    assert fed.num_tokens[:2] == [32 + 8 + 3, 8 + 3]


def test_what_was_evicted_is_computed_again() -> None:
    rig = Rig("llama")
    rig.engine = small_engine(ONE_SESSION)
    engine, line = rig.engine, random_line(50, seed=1)
    slot = engine.acquire()
    engine.step([Job(slot, line)])
    engine.forget(slot)
    other = engine.acquire()
    for seed in range(2, 6):
        engine.step([Job(other, random_line(120, seed=seed))])
        engine.forget(other)
    check_fork(rig, engine.step([forked(slot, line)]).logits, line)
    assert slot.num_cached_tokens == 0
    assert engine.blocks.num_tokens_found == 0
    assert engine.blocks.num_tokens_asked == 50 + 4 * 120 + 50


def test_many_sessions_one_after_the_other_leave_nothing_behind() -> None:
    rig = Rig("llama")
    rig.engine = small_engine(ONE_SESSION)
    engine = rig.engine
    for seed in range(60):
        slots = [engine.acquire() for _ in range(3)]
        beginning = random_line(3 * (seed % 11), seed=0)
        lines = [[*beginning, *random_line(20, seed=seed + index)] for index in range(3)]
        jobs = [forked(slot, line) for slot, line in zip(slots, lines, strict=True)]
        while jobs:
            output = engine.step(jobs)
            jobs = [job for job, num_rows in zip(jobs, output.num_rows, strict=True) if num_rows is None]
        if seed % 10 == 0:
            logits = engine.step([forked(slots[2], lines[2])]).logits
            check_fork(rig, logits, lines[2])
        for slot in slots:
            engine.release(slot)
    assert engine.blocks.num_available == engine.blocks.num_blocks
    assert engine.blocks.num_tokens_found > 0


# --- one prompt, read once ---


def test_a_prompt_that_several_begin_with_is_read_once() -> None:
    rig = Rig("gemma3")
    fed, line = Fed(rig.engine), random_line(50, seed=1)
    jobs = [Job(rig.engine.acquire(), list(line)) for _ in range(4)]
    output = rig.engine.step(jobs)
    assert output.num_rows == [1, None, None, None]
    rig.close(output.logits[0], rig.reference(line)[-1])
    output = rig.engine.step(jobs[1:])
    assert output.num_rows == [1, 1, 1]
    for logits in output.logits:
        rig.close(logits, rig.reference(line)[-1])
    assert fed.num_tokens == [50, 3 * 2]
    assert [job.slot.num_cached_tokens for job in jobs] == [0, 48, 48, 48]


def test_a_prompt_in_chunks_that_several_begin_with_is_read_once() -> None:
    rig = Rig("llama")
    fed, line = Fed(rig.engine), random_line(100, seed=1)
    jobs = waiting = [Job(rig.engine.acquire(), [*line, index]) for index in range(3)]
    while waiting:
        output = rig.engine.step(waiting, 24)
        waiting = [job for job, num_rows in zip(waiting, output.num_rows, strict=True) if num_rows is None]
    assert sum(fed.num_tokens) == 101 + 2 * (101 - 96)
    for job in jobs:
        rig.close(rig.engine.step([job]).logits[0], rig.reference(list(job.line))[-1])


# --- the budget of a step ---


def test_line_tokens_are_granted_in_the_order_of_the_jobs() -> None:
    rig = Rig("llama")
    engine = rig.engine
    lines = [random_line(length, seed=length) for length in (4, 20, 30)]
    jobs = [Job(engine.acquire(), line) for line in lines]
    fed = Fed(engine)
    assert engine.step(jobs, 10).num_rows == [1, None, None]
    assert [len(job.slot.cached_prefix) for job in jobs] == [4, 6, 0]
    assert fed.num_tokens == [10]
    lines[0].append(3)
    assert engine.step([jobs[2], jobs[1], jobs[0]], 30).num_rows == [1, None, None]
    assert [len(job.slot.cached_prefix) for job in jobs] == [4, 6, 30]


def test_a_job_whose_line_is_held_needs_no_tokens_of_the_budget() -> None:
    """Not even where its nodes have moved and it is fed nothing of the line, as when a drafter expands a tree."""
    rig = Rig("llama")
    engine = rig.engine
    slot, line = engine.acquire(), random_line(10, seed=1)
    engine.step([forked(slot, line)])
    line.append(5)
    long = Job(engine.acquire(), random_line(50, seed=2))
    output = engine.step([long, Job(slot, line, [LINE_END], [8], wanted=[0])], 20)
    assert output.num_rows == [None, 1]
    rig.close(output.logits[0], rig.reference([*line, 8])[-1])


def test_nodes_move_even_where_a_job_is_fed_nothing() -> None:
    rig = Rig("llama")
    engine = rig.engine
    slot, line = engine.acquire(), random_line(10, seed=1)
    engine.step([forked(slot, line)])
    line.extend([5, 8, 9])
    long = Job(engine.acquire(), random_line(50, seed=2))
    assert engine.step([long, Job(slot, line)], 20).num_rows == [None, None]
    assert slot.cached_prefix == line[:-2]
    rig.close(engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])


def test_a_step_that_grants_nothing_returns_no_rows() -> None:
    engine = Rig("llama").engine
    output = engine.step([Job(engine.acquire(), [1, 2, 3])], 0)
    assert output.num_rows == [None]
    assert output.logits.shape == (0, engine.vocab_size)


def test_timing_the_steps_shares_nothing_and_leaves_nothing() -> None:
    engine = Rig("llama").engine
    fed = Fed(engine)
    sizes = [size for size, _ in measure(engine)]
    assert max(sizes) > BLOCK_CELLS
    assert fed.num_tokens == [size for size in sizes for _ in range(4)]
    assert engine.blocks.num_available == engine.blocks.num_blocks
    assert (engine.blocks.num_tokens_asked, engine.blocks.num_tokens_found) == (0, 0)


# --- the budget of memory ---


def test_memory_is_for_all_sessions_at_their_longest_unless_told() -> None:
    blocks = Rig("llama", max_sessions=3).engine.blocks
    assert (blocks.block_cells, blocks.num_blocks) == (BLOCK_CELLS, 3 * ONE_SESSION // BLOCK_CELLS)
    assert small_engine(ONE_SESSION + 15).blocks.num_blocks == ONE_SESSION // BLOCK_CELLS


def test_memory_that_is_too_little_for_one_session_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedModelError, match=r"368 tokens .* 384: 128 of context and 256 .* raise --kv-memory"):
        small_engine(ONE_SESSION - 1)


@pytest.mark.parametrize(
    ("family", "num_bytes"),
    [("llama", 2 * 2 * (8 + 8) * 4), ("gemma3", 2 * 2 * (16 + 16) * 4), ("deepseek", 2 * 4 * (24 + 16) * 4)],
)
def test_what_a_token_takes_is_told_before_and_after(family: str, num_bytes: int) -> None:
    model = build(family)
    assert model_facts(model).kv_bytes_per_token == num_bytes
    in_16_bits = model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    assert model_facts(in_16_bits).kv_bytes_per_token == num_bytes // 2
    engine = Engine(model, max_sessions=1, max_context=MAX_CONTEXT)
    caches = sum(storage.numel() * storage.itemsize for storage in engine._model.cache.storages)
    assert caches == (engine.blocks.num_blocks + 1) * BLOCK_CELLS * engine.kv_bytes_per_token


def test_a_step_without_room_fails_in_words_and_leaves_no_trace() -> None:
    rig = Rig("llama")
    rig.engine = engine = small_engine(ONE_SESSION)
    lines = [random_line(120, seed=seed) for seed in range(4)]
    jobs = [Job(engine.acquire(), line) for line in lines]
    for job in jobs[:3]:
        engine.step([job])
    assert engine.num_missing_blocks(jobs[3]) > engine.blocks.num_available
    with pytest.raises(RuntimeError, match="has to ask num_missing_blocks"):
        engine.step(jobs)
    assert engine.blocks.num_available == engine.blocks.num_blocks
    assert engine.num_missing_blocks(jobs[3]) <= engine.blocks.num_available
    rig.close(engine.step([jobs[3]]).logits[0], rig.reference(lines[3])[-1])
