"""The kernels compute attention: against float64, over random trees. Every two values of type, heads, sizes, window,
cap, sinks and tile meet."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from outrider.engine.attention.interface import LayerCall
from outrider.engine.batch import PackedBatch
from outrider.engine.gpu import tree_attention, work_list
from outrider.engine.gpu.work_list import WORD_BITS, WORDS
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from tests.engine.gpu.twin import Ran, expected
from tests.engine.histories import random_line
from tests.engine.layers import Layer, packed, random_jobs
from tests.engine.meeting import meeting

pytestmark = pytest.mark.usefixtures("interpreter", "small_pages")

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3}
"""Largest norm of a difference, relative to that of the output. In bfloat16 the interpreter computes nonsense."""

PAGE = 16
SPLIT = 48
"""Three pages, so that lines of the tests have several splits."""
OF_A_WORKER = work_list.PAGE_CELLS, work_list.SPLIT_CELLS


HEADS = ((1, 1), (4, 1), (6, 2), (7, 1), (5, 5))
SIZES = ((16, 16), (24, 40), (64, 64), (8, 8))
WINDOWS = (None, 1, 2, 30, 70)
SOFTCAPS = (0.0, 2.0, 30.0)
TILE_TOKENS = (1, 3, 8)
CASES = meeting(tuple(TOLERANCES), HEADS, SIZES, WINDOWS, SOFTCAPS, (False, True), TILE_TOKENS)


@pytest.fixture(scope="module")
def small_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        sized(patch, PAGE, SPLIT)
        yield


def sized(patch: pytest.MonkeyPatch, page_cells: int, split_cells: int) -> None:
    patch.setattr(work_list, "PAGE_CELLS", page_cells)
    patch.setattr(work_list, "SPLIT_CELLS", split_cells)
    patch.setattr(tree_attention, "PAGE", page_cells)
    patch.setattr(tree_attention, "SPLIT", split_cells)


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("seed", range(len(CASES)))
def test_random_trees_side_by_side(seed: int) -> None:
    dtype, heads, sizes, window, softcap, has_sinks, tokens = CASES[seed]
    rng = random.Random(seed)
    layer = Layer(
        window=window,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        key_size=sizes[0],
        value_size=sizes[1],
        block_cells=PAGE,
        max_context=160,
        dtype=dtype,
    )
    jobs = random_jobs(layer, rng, num_sessions=rng.randint(1, 4), max_new=5, max_nodes=9, max_held=150)
    batch = packed(layer, jobs, seed % 3)
    call = LayerCall(0, sizes[0] ** -0.5, softcap, layer.noise(heads[0]) if has_sinks else None)
    check(layer, batch, call, tokens)


def check(layer: Layer, batch: PackedBatch, call: LayerCall, tokens: int) -> None:
    inputs = layer.inputs(len(batch.token_ids))
    found, wanted = Ran(layer, batch, inputs, call, tokens), expected(layer, batch, inputs, call)
    assert found.output.shape == wanted.output.shape
    assert error(found.output, wanted.output) <= TOLERANCES[layer.dtype]
    assert torch.equal(found.keys[:-1].double(), wanted.keys[:-1])  # all but the scratch cell
    assert torch.equal(found.values[:-1].double(), wanted.values[:-1])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_pages_and_splits_as_large_as_those_of_a_worker(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree behind a line of two splits and a part of a third, beside a short line."""
    sized(monkeypatch, *OF_A_WORKER)
    layer = Layer(block_cells=OF_A_WORKER[0], max_context=1200, num_blocks=40, dtype=dtype)
    line, other = random_line(1070, seed=1), random_line(70, seed=2)
    parents = [LINE_END, LINE_END, 0, 1, 2]
    jobs = [
        Job(layer.held(line), [*line, 1], parents, range(5), wanted=range(LINE_END, 5)),
        Job(layer.held(other), [*other, 1]),
    ]
    batch = packed(layer, jobs)
    assert work_list.num_parts(batch) == 6 * 3 + 1
    check(layer, batch, LayerCall(0, 0.2, 5.0, layer.noise(6)), 4)


@pytest.mark.parametrize("window", [None, 100])
def test_paths_through_all_words_of_a_mask(window: int | None) -> None:
    """Of a tree of as many nodes as a mask has bits, of which the deepest ones see some three quarters."""
    layer, rng, line = Layer(block_cells=PAGE, window=window), random.Random(4), random_line(20, seed=1)
    parents = [max(node - rng.choice([1, 1, 2]), LINE_END) for node in range(TREE_CELLS_MAX)]
    num_held = TREE_CELLS_MAX - 3
    slot = layer.held(line, parents[:num_held])
    batch = packed(layer, [Job(slot, line, parents, range(TREE_CELLS_MAX), range(num_held, TREE_CELLS_MAX))])
    assert {(cell - limit) // WORD_BITS for limit in batch.limits for cell in batch.path_cells} == set(range(WORDS))
    check(layer, batch, LayerCall(0, 0.2), 2)


def test_a_session_gets_the_same_bits_alone_and_beside_others() -> None:
    for window in (None, 50):
        layer = Layer(block_cells=PAGE, max_context=160, window=window)
        line = random_line(130, seed=1)
        parents = [LINE_END, LINE_END, 0, 1, 1]
        first = Job(layer.held(line), [*line, 1], parents, range(5), wanted=range(LINE_END, 5))
        others = random_jobs(layer, random.Random(2), num_sessions=4, max_new=5, max_nodes=9, max_held=150)
        inputs = layer.inputs(99)
        outputs: list[Tensor] = []
        for jobs in ([first, *others], [first]):
            batch = packed(layer, jobs)
            own = tuple(each[:, : len(batch.token_ids)] for each in inputs)
            outputs.append(Ran(layer, batch, own, LayerCall(0, 0.2), 4).output[:6])
        assert torch.equal(*outputs)


def test_a_token_gets_the_same_bits_whatever_else_its_session_feeds() -> None:
    """In other tiles, and where other tokens see further splits than its own."""
    layer = Layer(block_cells=PAGE, max_context=160)
    line = random_line(44, seed=1)
    slot = layer.held(line)
    inputs = layer.inputs(9)
    outputs: list[Tensor] = []
    for num_nodes, tokens in ((1, 8), (8, 8), (8, 2), (8, 1)):
        job = Job(slot, [*line, 1], range(LINE_END, num_nodes - 1), range(num_nodes), wanted=range(LINE_END, num_nodes))
        batch = packed(layer, [job])
        own = tuple(each[:, : len(batch.token_ids)] for each in inputs)
        outputs.append(Ran(layer, batch, own, LayerCall(0, 0.2), tokens).output[:2])
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_queries_of_any_layout_and_padding_that_sees_nothing() -> None:
    layer = Layer(block_cells=PAGE)
    jobs = random_jobs(layer, random.Random(1), num_sessions=3, max_new=4, max_nodes=5)
    batch = packed(layer, jobs, num_padding=3)
    inputs = layer.inputs(len(batch.token_ids))
    for sinks in (None, layer.noise(6)):
        call = LayerCall(0, 0.2, sinks=sinks)
        layouts = inputs, tuple(each.contiguous() for each in inputs)
        outputs = [Ran(layer, batch, each, call, 4).output for each in layouts]
        assert torch.equal(*outputs)
        assert torch.equal(outputs[0][-3:], torch.zeros(3, 6, 40))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_what_is_no_number_stays_with_its_session(bad: float) -> None:
    """In cells that nobody may see, and in what a neighbour writes."""
    layer = Layer(block_cells=PAGE)
    jobs = random_jobs(layer, random.Random(3), num_sessions=2, max_new=2, max_nodes=5)
    batch = packed(layer, jobs)
    query, key, value = layer.inputs(len(batch.token_ids))
    call = LayerCall(0, 0.2)
    clean = Ran(layer, batch, (query, key, value), call, 4)
    used = {place for places in seen_by_anybody(batch) for place in places}
    unused = [cell for cell in range(layer.num_cells) if cell not in used]
    layer.keys[unused], layer.values[unused] = bad, bad
    own = batch.sessions[0].end_token
    key, value = key.clone(), value.clone()
    key[:, own:], value[:, own:] = bad, bad
    spoiled = Ran(layer, batch, (query, key, value), call, 4)
    assert torch.equal(spoiled.output[:own], clean.output[:own])
    assert spoiled.output.isfinite().all()
    assert spoiled.keys[batch.write_cells].isfinite().all()


def seen_by_anybody(batch: PackedBatch) -> list[list[int]]:
    """All cells of each session, and those that are written."""
    found = [list(batch.write_cells)]
    for session in batch.sessions:
        blocks = batch.blocks[session.first_block :]
        found.append([blocks[cell // PAGE] * PAGE + cell % PAGE for cell in range(session.num_cells)])
    return found
