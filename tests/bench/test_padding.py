"""Padded speculation pads: every round as long as the longest, over as many cells; and it computes the same."""

from __future__ import annotations

import pytest
import torch

from bench.rivals.padding import Padding, missing_attention, pad_caches, pad_inputs, rounds
from bench.stack.worker import Measured
from outrider.engine.attention.masks import spans_and_masks
from outrider.engine.attention.native import NativeAttention
from outrider.engine.batch import PackedBatch, pack
from outrider.engine.engine import STEP_TOKENS_MAX, Engine
from outrider.engine.jobs import LINE_END, Job, plan
from tests.engine import histories
from tests.engine.histories import Rig, random_line
from tests.engine.tiny_models import build

SCRATCH_CELL = 999
LENGTHS = (30, 9, 17)
"""Of the lines of three sessions that decode."""
NUM_NODES = (1, 4, 0)
NUM_PROMPT_TOKENS = 21


def jobs_of(engine: Engine) -> list[Job]:
    """Three rounds of different lengths, and a prompt."""
    jobs: list[Job] = []
    for length, num_nodes in zip(LENGTHS, NUM_NODES, strict=True):
        slot, line = engine.acquire(), random_line(length, seed=length)
        engine.step([Job(slot, line[:-1])])
        chain = list(range(-1, num_nodes - 1))
        jobs.append(Job(slot, line, chain, [5] * num_nodes, wanted=range(LINE_END, num_nodes)))
    return [*jobs, Job(engine.acquire(), random_line(NUM_PROMPT_TOKENS, seed=99))]


@pytest.fixture
def engine() -> Engine:
    return Engine(build("llama"), max_sessions=4, max_context=128)


@pytest.fixture
def batch(engine: Engine) -> PackedBatch:
    return pack([plan(job, 100) for job in jobs_of(engine)])


def test_rounds_are_told_from_prompts(batch: PackedBatch) -> None:
    assert rounds(batch) == [0, 1, 2]


def test_inputs_are_padded_to_the_longest_round_and_prompts_are_not(batch: PackedBatch) -> None:
    num_before = len(batch.token_ids)
    assert num_before == sum(1 + num_nodes for num_nodes in NUM_NODES) + NUM_PROMPT_TOKENS
    rows = list(batch.rows)
    longest_round = 1 + max(NUM_NODES)
    assert pad_inputs(batch, SCRATCH_CELL) == len(LENGTHS) * longest_round - sum(1 + each for each in NUM_NODES)
    assert len(batch.token_ids) == len(LENGTHS) * longest_round + NUM_PROMPT_TOKENS
    assert batch.rows == rows, "padding brings no logits"
    assert set(batch.write_cells[num_before:]) == {SCRATCH_CELL}
    assert set(batch.limits[num_before:]) == {max(LENGTHS) + NUM_NODES[0]}
    for each in (batch.positions, batch.write_cells, batch.limits, batch.path_offsets[1:]):
        assert len(each) == len(batch.token_ids)
    assert batch.sessions[-1].end_token == len(batch.token_ids)


def test_caches_are_padded_to_the_longest_line_and_hide_what_is_added(batch: PackedBatch) -> None:
    own_blocks = [batch.blocks[session.first_block] for session in batch.sessions]
    pad_caches(batch)
    longest = max(length + num_nodes for length, num_nodes in zip(LENGTHS, NUM_NODES, strict=True))
    assert [session.num_cells for session in batch.sessions] == [longest, longest, longest, NUM_PROMPT_TOKENS]
    assert [batch.blocks[session.first_block] for session in batch.sessions] == own_blocks
    _, visible = spans_and_masks(batch, (None,))
    assert int(visible[None].sum()) == sum(batch.limits) + len(batch.path_cells)


def test_what_attention_misses_is_what_each_line_lacks(batch: PackedBatch) -> None:
    missing = missing_attention(batch, SCRATCH_CELL)
    longest = max(session.num_cells for session in batch.sessions)
    expected: list[int] = []
    for index in rounds(batch):
        session = batch.sessions[index]
        lack = longest - session.num_cells
        expected += [lack] * (session.end_token - session.first_token) if lack else []
    assert missing.limits == expected
    assert missing.sessions[-1].end_token == len(expected)


def test_a_single_round_needs_no_padding(engine: Engine) -> None:
    batch = pack([plan(jobs_of(engine)[1], 100)])
    assert pad_inputs(batch, SCRATCH_CELL) == 0
    assert missing_attention(batch, SCRATCH_CELL).limits == []


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_padding_changes_no_logits(family: str) -> None:
    rig = Rig(family)
    Padding(rig.engine.model).use(True)
    histories.sessions_in_one_step_equal_each_alone(rig)


def test_the_engine_feeds_what_padding_says(engine: Engine) -> None:
    padding = Padding(engine.model)
    jobs = jobs_of(engine)
    expected = engine.step(jobs).logits
    assert padding.num_tokens == 0
    for job in jobs:
        job.slot.clear()
        engine.step([Job(job.slot, job.line[:-1])])
    padding.use(True)
    output = engine.step(jobs[:3])
    assert padding.num_tokens == len(LENGTHS) * (1 + max(NUM_NODES)) - sum(1 + each for each in NUM_NODES)
    assert output.num_rows == [1 + each for each in NUM_NODES]
    torch.testing.assert_close(output.logits, expected[: len(output.logits)], atol=2e-4, rtol=2e-4)


def test_a_mode_pads_if_it_says_so_and_finds_no_prompt_of_another(engine: Engine) -> None:
    measured, jobs = Measured(is_target=True), jobs_of(engine)
    for job in jobs:
        engine.release(job.slot)
    runner = measured.run(engine)
    for pads in (True, False):
        measured.begin(pads=pads)
        jobs = jobs_of(engine)
        assert [job.slot.num_cached_tokens for job in jobs] == [0] * len(jobs)
        runner.launch(jobs[:3], STEP_TOKENS_MAX)
        num_rows = sum(1 + each for each in NUM_NODES)
        num_padding = len(LENGTHS) * (1 + max(NUM_NODES)) - num_rows if pads else 0
        assert runner.log.take()["sizes"] == [(len(LENGTHS), num_rows, num_padding)]
        for job in jobs:
            engine.release(job.slot)


@pytest.mark.usefixtures("native_operators")
def test_beside_a_compiled_pass_the_missing_attention_is_done_and_leaves_no_trace(engine: Engine) -> None:
    model = engine.model
    batch = pack([plan(job, 100) for job in jobs_of(engine)])
    before = [storage.clone() for storage in model.cache.storages]
    attention = NativeAttention(model.facts, model.cache)
    Padding(model).attend(attention, missing_attention(batch, model.cache.scratch_cell))
    for storage, copy in zip(model.cache.storages, before, strict=True):
        held = slice(model.cache.scratch_cell)
        assert torch.equal(storage[:, held], copy[:, held])
