"""Attention by blocks computes what attention session by session does, in a few calls of its kernel for all sessions.

`Varlen` stands for the kernel: it computes what is documented of it. `tests/gpu/test_gpu_paged.py` runs the real one.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from outrider.engine.attention.interface import LayerCall
from outrider.engine.attention.paged import Kernel, PagedAttention, can_page, merged, runs_on
from outrider.engine.attention.paged_batch import Parts, load, parts_of
from outrider.engine.batch import PackedBatch, pack
from outrider.engine.jobs import LINE_END, Job, plan
from outrider.engine.load.probe import LayerFacts
from tests.engine import histories
from tests.engine.histories import CPU, HALF_FAMILIES, HALF_TOLERANCES, Rig, random_line
from tests.engine.layers import Layer, random_jobs
from tests.engine.tiny_models import FAMILIES
from tests.engine.varlen import Varlen

META = torch.device("meta")
CALL = LayerCall(0, scale=0.2)
PAGING_FAMILIES = ("llama", "qwen3", "gpt2", "mistral", "gemma3")
"""Families of which at least one layer pages, the last two of them where no window hides anything."""


def paged(family: str, **rig: object) -> tuple[Rig, Varlen]:
    """A rig whose layers page wherever they could in 16 bits on a GPU."""
    made, kernel = Rig(family, **rig), Varlen(page_step=16)  # type: ignore[arg-type]
    page(made, kernel)
    return made, kernel


def page(rig: Rig, kernel: Kernel) -> None:
    """From now on the rig attends by `kernel`, which takes 32 bits too."""
    model = rig.engine._model
    attention = PagedAttention(model.facts._replace(dtype=torch.bfloat16), model.cache, kernel)
    attention._facts = model.facts
    model._use(attention, compiled=False)


def random_batch(layer: Layer, seed: int, **shape: int) -> PackedBatch:
    jobs = random_jobs(layer, random.Random(seed), **shape)
    batch = pack([plan(job, max_tokens=512) for job in jobs])
    batch.pad(len(batch.token_ids) + seed % 3, layer.num_cells - 1)
    return batch


def what_is_seen(batch: PackedBatch, parts: Parts) -> list[list[int]]:
    """For each token the cells, in the caches, that the parts say it sees."""
    seen: list[list[int]] = [[] for _ in batch.token_ids]
    for stretches, step in ((parts.runs, 1), (parts.fans, 0)):
        for stretch in stretches:
            for token in range(stretch.first_token, stretch.end_token):
                num_cells = stretch.num_cells - step * (stretch.end_token - 1 - token)
                assert num_cells > 0
                for cell in range(num_cells):
                    block = batch.blocks[stretch.first_block + cell // batch.block_cells]
                    seen[token].append(block * batch.block_cells + cell % batch.block_cells)
    for token, cells in parts.paths.items():
        seen[token] += cells
    return seen


SHAPES = [
    pytest.param({"num_sessions": 1, "max_new": 0, "max_nodes": 0}, id="one token"),
    pytest.param({"num_sessions": 12, "max_new": 1, "max_nodes": 0}, id="plain decoding"),
    pytest.param({"num_sessions": 6, "max_new": 9, "max_nodes": 0}, id="lines alone"),
    pytest.param({"num_sessions": 6, "max_new": 0, "max_nodes": 7}, id="trees alone"),
    pytest.param({"num_sessions": 9, "max_new": 5, "max_nodes": 9}, id="lines and trees"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_parts_cover_what_each_token_sees_and_nothing_twice(shape: dict[str, int]) -> None:
    for seed in range(30):
        layer = Layer()
        batch = random_batch(layer, seed, **shape)
        parts = parts_of(batch)
        seen = what_is_seen(batch, parts)
        for session in batch.sessions:
            blocks = batch.blocks[session.first_block :]
            for token in range(session.first_token, session.end_token):
                path = batch.path_cells[batch.path_offsets[token] : batch.path_offsets[token + 1]]
                cells = [*range(batch.limits[token]), *path]
                expected = [blocks[cell // 16] * 16 + cell % 16 for cell in cells]
                assert sorted(seen[token]) == sorted(expected)
        assert not any(seen[batch.sessions[-1].end_token :])
        assert all(stretch.end_token - stretch.first_token > 1 for stretch in parts.runs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block_cells", [16, 256])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_random_batches(shape: dict[str, int], block_cells: int, num_kv_heads: int) -> None:
    num_paths = 0
    for seed in range(8):
        layer = Layer(num_kv_heads=num_kv_heads, key_size=24, value_size=24, block_cells=block_cells)
        batch = random_batch(layer, seed, **shape)
        kernel = Varlen(page_step=block_cells)
        step, ragged, inputs = layer.paged(batch, kernel), layer.by_session(batch), layer.inputs(len(batch.token_ids))
        num_paths += step.parts.paths is not None
        with torch.inference_mode():
            expected = ragged.attend(*inputs, CALL)
            found = step.attend(*inputs, CALL)
        assert 1 <= kernel.num_calls <= 3
        assert found.shape == expected.shape
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
        assert torch.equal(step.by_session.key_caches[0][:-1], ragged.key_caches[0][:-1])  # all but the scratch cell
        assert torch.equal(step.by_session.value_caches[0][:-1], ragged.value_caches[0][:-1])
    assert (num_paths > 0) == (shape["max_nodes"] > 0)


def test_queries_of_any_layout() -> None:
    """Layers hand them over as they come from their projections, head after head within a token, or head by head."""
    layer = Layer(key_size=24, value_size=24)
    batch = random_batch(layer, 1, num_sessions=6, max_new=4, max_nodes=5)
    inputs = layer.inputs(len(batch.token_ids))
    outputs: list[Tensor] = []
    for each in (inputs, tuple(part.contiguous() for part in inputs)):
        query, key, value = each
        outputs.append(layer.paged(batch, Varlen(16)).attend(query, key, value, CALL))
    assert torch.equal(*outputs)


def kinds(layer: Layer, *jobs: Job) -> tuple[int, int, int]:
    """How many runs, fans and paths a step over `jobs` has."""
    parts = parts_of(pack([plan(job, max_tokens=512) for job in jobs]))
    return len(parts.runs), len(parts.fans), len(parts.paths)


def test_what_is_a_run_what_is_a_fan_and_what_has_a_path() -> None:
    layer, line = Layer(), random_line(20, seed=1)
    chain, tree = [LINE_END, 0, 1], [LINE_END, 0, 0]
    assert kinds(layer, Job(layer.held(line), [*line, 1])) == (0, 1, 0)
    assert kinds(layer, Job(layer.held(line), [*line, 1, 2])) == (1, 0, 0)
    assert kinds(layer, Job(layer.held(line), [*line, 1], chain, [1, 2, 3], wanted=range(3))) == (1, 0, 0)
    assert kinds(layer, Job(layer.held(line, [LINE_END, 0]), line, chain, [0, 1, 2], wanted=[2])) == (0, 1, 0)
    assert kinds(layer, Job(layer.held(line), [*line, 1], tree, [1, 2, 3], wanted=range(3))) == (0, 1, 3)
    assert kinds(layer, Job(layer.held(line), [*line, 1, 2], tree, [1, 2, 3], wanted=range(3))) == (0, 2, 3)
    assert kinds(layer, Job(layer.held(line), [*line, 1, 2, 3], tree, [1, 2, 3], wanted=range(3))) == (1, 1, 3)
    assert kinds(layer, Job(layer.held(line, [LINE_END] * 2), line, [LINE_END, 0], [0, 5], wanted=[1])) == (0, 1, 1)


def test_plain_decoding_is_one_call_over_sequences_of_one_query() -> None:
    """Kernels then take query heads that share a key head for queries, and read each key once."""
    layer, line = Layer(), random_line(20, seed=1)
    jobs = [Job(layer.held(line[:length]), line[: length + 1]) for length in (1, 9, 15, 19)]
    batch = load(pack([plan(job, max_tokens=512) for job in jobs]), CPU)
    assert batch.runs is None
    assert batch.paths is None
    assert batch.fans is not None
    assert (batch.fans.max_queries, batch.fans.max_keys) == (1, 20)
    assert batch.fans.num_keys is not None
    assert batch.fans.num_keys.tolist() == [2, 10, 16, 20]
    assert batch.fans.table is not None
    assert batch.fans.table.shape == (4, 2)
    assert batch.fans.table[:3, 1].tolist() == [0, 0, 0]  # not read


@pytest.mark.parametrize("distance", [0.0, 3.0, -3.0, 80.0, -80.0, 1e4, -1e4])
def test_parts_are_merged_exactly(distance: float) -> None:
    """As the softmax over both, also where one part weighs nothing."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(5, 2, 9, generator=generator, dtype=torch.float64)  # [H, Q, C]
    scores[..., :4] += distance
    values = torch.randn(5, 9, 8, generator=generator, dtype=torch.float64)
    expected = (scores.softmax(-1) @ values).transpose(0, 1)
    parts: list[Tensor] = []
    for cells in (slice(4), slice(4, 9)):
        attended = (scores[..., cells].softmax(-1) @ values[:, cells]).transpose(0, 1)
        parts += [attended.float(), scores[..., cells].logsumexp(-1).float()]
    found = merged(*parts)
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(("history", "family"), histories.by_family(FAMILIES, ["qwen3", "gemma3", "gpt_oss"]))
def test_paged_steps_of_each_family(history: Callable[[Rig], None], family: str) -> None:
    rig, kernel = paged(family)
    history(rig)
    assert (kernel.num_calls > 0) == (family in (*PAGING_FAMILIES[:3], "gemma3"))


@pytest.mark.parametrize("family", PAGING_FAMILIES)
def test_any_paged_history_equals_a_fresh_start(family: str) -> None:
    rig, kernel = paged(family)
    histories.any_history_equals_a_fresh_start(rig)
    assert kernel.num_calls > 0


@pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)
@pytest.mark.parametrize("family", PAGING_FAMILIES[:3])
def test_paged_steps_in_16_bits(family: str, dtype: torch.dtype) -> None:
    rig, kernel = paged(family, dtype=dtype)
    histories.a_tree_equals_its_branches_alone(rig)
    assert kernel.num_calls > 0


def test_a_long_prompt_is_fed_in_chunks_beside_others() -> None:
    histories.a_long_prompt_is_fed_in_four_chunks_beside_another(paged("llama")[0])


def test_a_step_that_fails_half_way_leaves_no_trace() -> None:
    histories.a_step_that_fails_half_way_leaves_no_trace(paged("llama")[0])


def test_a_whole_paged_model_traces_into_one_graph() -> None:
    histories.a_whole_model_traces_into_one_graph(paged("llama")[0])


def test_calls_do_not_grow_with_the_sessions() -> None:
    num_calls: list[int] = []
    for num_sessions in (1, 4):
        rig, kernel = paged("llama")
        jobs = [
            Job(rig.engine.acquire(), random_line(30 + index, seed=index), [LINE_END, 0, 0], [1, 2, 3], range(3))
            for index in range(num_sessions)
        ]
        rig.engine.step(jobs)
        num_calls.append(kernel.num_calls)
    assert num_calls == [2 * 3, 2 * 3]  # by layer: runs, fans and paths


def test_windows_that_hide_nothing_page() -> None:
    """The tiny Mistral's windows are of 7 tokens."""
    rig, kernel = paged("mistral")
    line, other_line = random_line(6, seed=1), random_line(6, seed=2)
    slot, other = rig.engine.acquire(), rig.engine.acquire()
    for num_calls in (2, 4, 4):
        logits = rig.engine.step([Job(slot, line), Job(other, other_line)]).logits
        rig.close(logits[0], rig.reference(line)[-1])
        rig.close(logits[1], rig.reference(other_line)[-1])
        assert kernel.num_calls == num_calls
        line.append(3)
        other_line.append(4)


@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_a_paged_step_never_waits_for_its_device(family: str) -> None:
    """Tensors on the meta device have no content: whoever looks at one, or mixes it with the host's, fails. The kernel
    is torch's own, as it traces it."""
    rig, _ = paged(family, device=META, dtype=torch.bfloat16)
    engine = rig.engine
    page(rig, varlen_attn)
    slot, other = engine.acquire(), engine.acquire()
    line, other_line = random_line(5, seed=1), random_line(4, seed=2)
    for _ in range(2):
        job = Job(slot, line, [LINE_END, LINE_END, 1], [1, 2, 3], wanted=range(-1, 3))
        output = engine.step([job, Job(other, other_line)])
        assert output.logits.shape == (5, engine.vocab_size)
        assert output.logits.device == engine.device == META
        line.append(2)
        other_line += [1, 2]


def test_which_layers_page() -> None:
    facts = LayerFacts(num_heads=4, num_kv_heads=2, key_size=128, value_size=128, window=None, shapes_scores=False)
    assert can_page(facts, torch.bfloat16)
    assert can_page(facts, torch.float16)
    assert can_page(facts._replace(window=512), torch.float16)
    assert not can_page(facts, torch.float32)
    assert not can_page(facts._replace(shapes_scores=True), torch.float16)
    assert not can_page(facts._replace(value_size=64), torch.float16)
    assert not can_page(facts._replace(key_size=288, value_size=288), torch.float16)
    assert not can_page(facts._replace(key_size=20, value_size=20), torch.float16)
    assert not runs_on(CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_shapes_scores_is_seen_at_start(family: str) -> None:
    layers = Rig(family).engine._model.facts.layers
    assert {facts.shapes_scores for facts in layers} == {family in ("gemma2", "gpt_oss")}
