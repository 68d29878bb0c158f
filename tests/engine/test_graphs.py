"""Steps of static shape compute what other steps compute, recorded once from padding alone and replayed for all.

A `Tape` stands for CUDA's capture; `tests/gpu/test_gpu_graphs.py` runs the same on a device that has it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from outrider.engine.attention.interface import LayerCall
from outrider.engine.attention.static import StaticAttention
from outrider.engine.attention.static_batch import (
    COLUMNS_MAX,
    PATH_CELLS_PER_TOKEN,
    StaticSize,
    column_sizes,
    static_numbers,
    static_size,
)
from outrider.engine.batch import COMPILED_SIZES, COMPILED_TOKENS_MAX, PackedBatch, pack
from outrider.engine.compile.graphs import StepGraphs
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job, plan, settle
from tests.engine import histories
from tests.engine.histories import HALF_FAMILIES, HALF_TOLERANCES, Rig, random_line
from tests.engine.layers import Layer, random_jobs
from tests.engine.tape import Tape, graph, graphed
from tests.engine.tiny_models import FAMILIES, build

META = torch.device("meta")


def taped(family: str, **rig: object) -> tuple[Rig, Tape]:
    made, tape = Rig(family, **rig), Tape()  # type: ignore[arg-type]
    graphed(made.engine, tape)
    return made, tape


@pytest.mark.parametrize("window", [None, 30, 2, 1])
@pytest.mark.parametrize(
    ("softcap", "sinks", "num_kv_heads"),
    [
        pytest.param(0.0, False, 2, id="grouped heads"),
        pytest.param(0.0, False, 6, id="a key head each"),
        pytest.param(0.0, False, 1, id="one key head"),
        pytest.param(2.0, False, 2, id="softcap"),
        pytest.param(0.0, True, 2, id="sinks"),
    ],
)
def test_random_trees_side_by_side(window: int | None, softcap: float, sinks: bool, num_kv_heads: int) -> None:
    for seed in range(12):
        layer, rng = Layer(window=window, num_kv_heads=num_kv_heads), random.Random(seed)
        jobs = random_jobs(layer, rng, num_sessions=1 + seed % 4, max_new=1, max_nodes=2)
        batch = pack([plan(job, max_tokens=512) for job in jobs])
        num_tokens, size = len(batch.token_ids), static_size(batch, rng.randint(0, 16))
        assert size is not None
        buffer = layer.static()
        with torch.inference_mode():
            buffer.load(batch, size)  # pads
            static = buffer.read(size)
        ragged, inputs = layer.by_session(batch), layer.inputs(size.num_tokens)
        call = LayerCall(0, 0.2, softcap, layer.noise(6) if sinks else None)
        with torch.inference_mode():
            expected = ragged.attend(*inputs, call)
            found = static.attend(*inputs, call)
        assert found.shape == expected.shape == (size.num_tokens, 6, 40)
        assert found.is_contiguous()
        assert found.isfinite().all()
        torch.testing.assert_close(found[:num_tokens], expected[:num_tokens], atol=2e-6, rtol=2e-6)
        assert torch.equal(static.key_caches[0][:-1], ragged.key_caches[0][:-1])  # all but the scratch cell
        assert torch.equal(static.value_caches[0][:-1], ragged.value_caches[0][:-1])


@pytest.mark.parametrize(("history", "family"), histories.by_family(FAMILIES, ["gemma3", "deepseek"]))
def test_replayed_steps_of_each_family(history: Callable[[Rig], None], family: str) -> None:
    rig, tape = taped(family)
    history(rig)
    assert tape.num_replays > 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_any_replayed_history_equals_a_fresh_start(family: str) -> None:
    rig, tape = taped(family)
    histories.any_history_equals_a_fresh_start(rig)
    assert tape.num_replays > 100


@pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_replayed_steps_in_16_bits(family: str, dtype: torch.dtype) -> None:
    rig, tape = taped(family, dtype=dtype)
    histories.a_tree_equals_its_branches_alone(rig)
    assert tape.num_replays > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replayed_step_never_waits_for_its_device(family: str) -> None:
    """Tensors on the meta device have no content: whoever looks at one, or mixes it with the host's, fails."""
    engine = graphed(Rig(family, device=META, dtype=torch.bfloat16).engine, lambda run: run)
    slot, line = engine.acquire(), random_line(5, seed=1)
    output = engine.step([Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=range(-1, 3))])
    assert output.logits.shape == (4, engine.vocab_size)
    assert output.logits.device == engine.device == META


def test_logits_outlive_the_next_step() -> None:
    rig, tape = taped("llama")
    slot, line = rig.engine.acquire(), random_line(5, seed=1)
    rig.engine.step([Job(slot, line)])
    found: list[Tensor] = []
    for token_id in (3, 4):  # two replays of one recording
        line.append(token_id)
        found.append(rig.engine.step([Job(slot, line)]).logits[0])
    assert tape.num_replays == 3
    rig.close(torch.stack(found), rig.reference(line)[5:])


def test_large_batches_and_long_contexts_run_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, tape = taped("mistral")
    slot, other = rig.engine.acquire(), rig.engine.acquire()
    line, other_line = random_line(COMPILED_TOKENS_MAX + 1, seed=1), random_line(3, seed=2)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
    assert (tape.num_replays, rig.engine.path) == (0, "eager")
    line.append(5)
    rig.close(rig.engine.step([Job(slot, line)]).logits[0], rig.reference(line)[-1])
    assert (tape.num_replays, rig.engine.path) == (1, "graph")
    line.append(6)
    monkeypatch.setattr("outrider.engine.attention.static_batch.COLUMNS_MAX", 128)
    logits = rig.engine.step([Job(slot, line), Job(other, other_line)]).logits
    assert tape.num_replays == 1
    rig.close(logits[0], rig.reference(line)[-1])
    rig.close(logits[1], rig.reference(other_line)[-1])


def test_a_step_that_fails_half_way_leaves_no_trace() -> None:
    """Cells have moved, and the batch is on the device."""
    rig, tape = taped("llama")
    slot, line = rig.engine.acquire(), random_line(6, seed=3)
    rig.engine.step([Job(slot, line, [LINE_END, LINE_END], [1, 2], wanted=[0, 1])])
    line.append(2)
    (graphs, _) = rig.engine._model.forwards
    assert isinstance(graphs, StepGraphs)
    broken = dict(graphs._passes)

    def fail() -> Tensor:
        raise RuntimeError("half way")

    graphs._passes = dict.fromkeys(broken, fail)
    with pytest.raises(RuntimeError, match="half way"):
        rig.engine.step([Job(slot, line, [LINE_END], [3], wanted=[0])])
    assert slot.cached_prefix == []
    graphs._passes = broken
    logits = rig.engine.step([Job(slot, line, [LINE_END], [3], wanted=[0])]).logits
    assert tape.num_replays == 2
    rig.close(logits[0], rig.reference([*line, 3])[-1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_oss"])
def test_one_session_of_nonsense_does_not_reach_its_neighbours(family: str, bad: float) -> None:
    """Keys and values of one token are no numbers, fed in a large step and in a small one."""
    rig, tape = taped(family)
    poison, spoiled = 60, rig.engine._model.decoder.model.get_input_embeddings()
    with torch.no_grad():
        spoiled.weight[poison] = bad  # type: ignore[index]
    sick, well = rig.engine.acquire(), rig.engine.acquire()
    sick_line, well_line = [poison] * (COMPILED_TOKENS_MAX + 1), [token % poison for token in random_line(9, seed=1)]
    rig.engine.step([Job(sick, sick_line)])
    rig.engine.step([Job(well, well_line)])
    for token_id in (3, 4, 5):
        sick_line.append(poison)
        well_line.append(token_id)
        logits = rig.engine.step([Job(sick, sick_line), Job(well, well_line)]).logits
        rig.close(logits[1, :poison], rig.reference(well_line)[-1, :poison])  # tied weights spoil that token's logit
    assert tape.num_replays == 4
    assert all(cache.isfinite().all() for cache in rig.engine._model.cache.storages)


@pytest.mark.parametrize("block_cells", [16, 256])
def test_what_is_told_to_the_device_is_as_long_for_all_batches_of_a_size(block_cells: int) -> None:
    layer, size = Layer(max_context=300, block_cells=block_cells), StaticSize(4, 512)
    for context in (5, 290):
        line = random_line(context, seed=1)
        job = Job(layer.held(line), [*line, 1], [LINE_END, 0, 0], [1, 2, 3], wanted=range(LINE_END, 3))
        batch = pack([plan(job, max_tokens=512)])
        assert len(static_numbers(batch, size, layer.num_cells, block_cells)) == size.num_numbers(block_cells)


@pytest.mark.parametrize("block_cells", [16, 256])
def test_as_many_blocks_as_there_may_be_find_room(block_cells: int) -> None:
    """Sixteen sessions with a token each, whose cells fill all columns and end with the first cell of a block."""
    num_sessions = COMPILED_TOKENS_MAX
    layer = Layer(
        max_context=COLUMNS_MAX, block_cells=block_cells, num_blocks=COLUMNS_MAX // block_cells + num_sessions
    )
    num_left = COLUMNS_MAX
    jobs: list[Job] = []
    for index in range(num_sessions):
        num_cells = 1 if index < num_sessions - 1 else num_left - (num_left - 1) % block_cells
        num_left -= num_cells
        line = random_line(num_cells, seed=index)
        jobs.append(Job(layer.held(line), line))
    batch = pack([plan(job, max_tokens=512) for job in jobs])
    size = StaticSize(num_sessions, COLUMNS_MAX)
    assert static_size(batch, 0) == size
    with torch.inference_mode():
        buffer = layer.static()
        buffer.load(batch, size)
        cells = buffer.read(size).cells.tolist()
    expected = [place for job in jobs for place in job.slot.places(range(len(job.line)))]
    assert cells[: len(expected)] == expected
    assert all(cell // block_cells == layer.num_cells // block_cells - 1 for cell in cells[len(expected) :])


def test_steps_are_captured_also_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape()
    monkeypatch.setattr("outrider.engine.model.CudaRecorder", lambda device: tape)
    rig = Rig("llama")
    model = rig.engine._model
    model.facts = model.facts._replace(captures=True)
    model._use(StaticAttention(model.facts, model.cache), compiled=False)
    assert model.captures
    assert sorted(rig.engine.warm_up()) == list(COMPILED_SIZES)
    histories.a_tree_equals_its_branches_alone(rig)
    assert tape.num_replays > 0


def test_a_pass_that_waits_for_its_device_cannot_be_recorded() -> None:
    with pytest.raises(RuntimeError, match="waits for the device"):
        Tape()(lambda: torch.ones(2) * torch.ones(1).item())


def test_sizes() -> None:
    assert column_sizes(100) == (256,)
    assert column_sizes(1536) == (256, 512, 1024, 2048)
    assert column_sizes(10**6)[-1] == COLUMNS_MAX

    def chain(num_tokens: int, depth: int) -> PackedBatch:
        layer, line = Layer(max_context=300), random_line(250, seed=1)
        slot = layer.held(line)
        parents, token_ids = range(LINE_END, depth - 1), [1] * depth
        for num_fed in range(0, depth - num_tokens + 1, 8):
            settle(plan(Job(slot, line, parents[:num_fed], token_ids[:num_fed], wanted=()), max_tokens=512))
        settled = depth - num_tokens
        settle(plan(Job(slot, line, parents[:settled], token_ids[:settled], wanted=()), max_tokens=512))
        return pack([plan(Job(slot, line, parents, token_ids, wanted=[depth - 1]), max_tokens=512)])

    assert static_size(chain(3, depth=3), 0) == StaticSize(4, 256)
    assert static_size(chain(3, depth=3), 9) == StaticSize(16, 256)
    assert static_size(chain(1, depth=10), 0) == StaticSize(1, 512)
    assert static_size(chain(1, depth=PATH_CELLS_PER_TOKEN), 0) is not None
    assert static_size(chain(1, depth=PATH_CELLS_PER_TOKEN + 1), 0) is None
    assert static_size(chain(17, depth=17), 0) is None
    assert static_size(chain(3, depth=3), 17) is None
    assert static_size(PackedBatch(), 4) is None


def test_what_was_compiled_for_a_size_serves_static_and_ragged_steps() -> None:
    """So a context too long for a graph compiles nothing while a worker serves. Traced for real, not made machine code:
    what tells one graph from another is the tracer's alone."""
    reference = build("llama", layers=1)
    engine = Engine(build("llama", layers=1), max_sessions=1, max_context=64)
    model = engine._model
    counters.clear()
    compiler = partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager")
    graphs = graph(engine, lambda run: (run(), run)[1], compiler)
    num_compiled = counters["stats"]["unique_graphs"]
    assert num_compiled == len(COMPILED_SIZES)
    slot, line = engine.acquire(), random_line(8, seed=3)
    for is_static in (True, False):
        if not is_static:
            model.forwards.remove(graphs)
        for num_more in (0, 1, 2):
            line.extend(random_line(num_more, seed=num_more))
            logits = engine.step([Job(slot, line)]).logits
            with torch.inference_mode():
                expected = reference(input_ids=torch.tensor([line]), use_cache=False).logits[0, -1:]
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
    assert counters["stats"]["unique_graphs"] == num_compiled
