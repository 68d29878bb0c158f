"""FlashAttention's kernel as torch has it computes what it is documented to, and attention by blocks on it is right.

`tests/engine/test_paged.py` runs the same without a GPU, on what is documented.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from outrider.engine.attention.interface import LayerCall
from outrider.engine.attention.paged import CAPABILITY_MIN, PAGE_CELLS, PagedAttention, runs_on
from outrider.engine.attention.registry import AUTO
from outrider.engine.attention.static import StaticAttention
from outrider.engine.batch import COMPILED_TOKENS_MAX
from outrider.engine.jobs import LINE_END, Job
from tests.engine import histories
from tests.engine.histories import HALF_TOLERANCES, Rig, random_line
from tests.engine.layers import Layer, packed, random_jobs
from tests.engine.tape import graphed
from tests.engine.varlen import Varlen
from tests.gpu.device import CUDA, never_waiting, on_cuda
from tests.gpu.test_gpu_graphs import CountingRecorder

pytestmark = on_cuda(CAPABILITY_MIN)

ATTENDED_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest difference of what attention returns for values around 1: a few times what rounding it to 16 bits costs."""

half_types = pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)
paging_families = pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3"])


class Compared:
    """The real kernel, whose every result is compared with `Varlen`'s."""

    def __init__(self, tolerance: float) -> None:
        self.num_log_sums = 0
        self._documented = Varlen()
        self._tolerance = tolerance

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        output, log_sums = varlen_attn(*arguments, **options)  # type: ignore[misc]
        expected, expected_log_sums = self._documented(*arguments, **options)
        torch.testing.assert_close(output.float(), expected.float(), atol=self._tolerance, rtol=self._tolerance)
        assert log_sums.shape == expected_log_sums.shape
        if not expected_log_sums.isnan().any():
            self.num_log_sums += 1
            torch.testing.assert_close(log_sums, expected_log_sums, atol=1e-3, rtol=1e-3)
        return output, log_sums


class Counted:
    """The real kernel."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        self.num_calls += 1
        return varlen_attn(*arguments, **options)  # type: ignore[return-value]


def layer_of(dtype: torch.dtype, *, num_kv_heads: int = 2, size: int = 64) -> Layer:
    return Layer(
        num_kv_heads=num_kv_heads,
        key_size=size,
        value_size=size,
        block_cells=PAGE_CELLS,
        max_context=1200,
        dtype=dtype,
        device=CUDA,
    )


def test_the_kernel_reads_blocks() -> None:
    assert runs_on(CUDA)


SHAPES = [
    pytest.param({"num_sessions": 1, "max_new": 0, "max_nodes": 0}, id="one token"),
    pytest.param({"num_sessions": 12, "max_new": 1, "max_nodes": 0}, id="plain decoding"),
    pytest.param({"num_sessions": 4, "max_new": 300, "max_nodes": 0}, id="lines alone"),
    pytest.param({"num_sessions": 8, "max_new": 0, "max_nodes": 1}, id="a node each"),
    pytest.param({"num_sessions": 6, "max_new": 0, "max_nodes": 9}, id="trees alone"),
    pytest.param({"num_sessions": 9, "max_new": 200, "max_nodes": 9}, id="lines and trees"),
]


@half_types
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("num_kv_heads", "size"), [(2, 64), (1, 128), (6, 128), (2, 8), (2, 80), (3, 256)])
def test_random_batches(dtype: torch.dtype, shape: dict[str, int], num_kv_heads: int, size: int) -> None:
    """Contexts of up to five blocks, which are not in a row."""
    for seed in range(4):
        layer, kernel = layer_of(dtype, num_kv_heads=num_kv_heads, size=size), Compared(ATTENDED_TOLERANCE[dtype])
        batch = packed(layer, random_jobs(layer, random.Random(seed), max_held=1100, **shape), 3)
        step, ragged, inputs = layer.paged(batch, kernel), layer.by_session(batch), layer.inputs(len(batch.token_ids))
        scale = size**-0.5
        with torch.inference_mode():
            found, expected = (each.attend(*inputs, LayerCall(0, scale)) for each in (step, ragged))
        tolerance = 2 * ATTENDED_TOLERANCE[dtype]
        torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)
        assert kernel.num_log_sums > 0 or step.parts.paths is None


@half_types
def test_what_nobody_sees_may_be_no_number(dtype: torch.dtype) -> None:
    """Blocks are read to their ends, whatever stands there."""
    layer = layer_of(dtype)
    jobs = random_jobs(layer, random.Random(1), num_sessions=9, max_new=40, max_nodes=9, max_held=600)
    batch = packed(layer, jobs, 3)
    inputs = layer.inputs(len(batch.token_ids))
    seen = [place for job in jobs for place in job.slot.places(range(len(job.line)))]
    for session in batch.sessions:
        blocks = batch.blocks[session.first_block :]
        path_cells = batch.path_cells[batch.path_offsets[session.first_token] : batch.path_offsets[session.end_token]]
        seen += [blocks[cell // PAGE_CELLS] * PAGE_CELLS + cell % PAGE_CELLS for cell in path_cells]
    with torch.inference_mode():
        expected = layer.paged(batch, varlen_attn).attend(*inputs, LayerCall(0, scale=0.125))
        unseen = torch.ones(layer.num_cells, dtype=torch.bool, device=CUDA)
        unseen[torch.tensor(seen, device=CUDA)] = False
        for cache in (layer.keys, layer.values):
            cache[unseen] = torch.nan
        found = layer.paged(batch, varlen_attn).attend(*inputs, LayerCall(0, scale=0.125))
    assert found.isfinite().all()
    assert torch.equal(found, expected)


@half_types
def test_a_session_is_attended_alike_whoever_else_is_in_the_batch(dtype: torch.dtype) -> None:
    layer = layer_of(dtype)
    line = random_line(700, seed=1)
    parents = [LINE_END, LINE_END, 0, 1, 1]
    first = Job(layer.held(line), [*line, 1], parents, range(5), wanted=range(LINE_END, 5))
    others = random_jobs(layer, random.Random(2), num_sessions=7, max_new=200, max_nodes=9, max_held=1100)
    outputs: list[Tensor] = []
    num_tokens = 6
    inputs: tuple[Tensor, ...] | None = None
    for jobs in ([first, *others], [first]):
        batch = packed(layer, jobs, 3)
        inputs = inputs or layer.inputs(len(batch.token_ids))
        query, key, value = (each[:, : len(batch.token_ids)] for each in inputs)
        with torch.inference_mode():
            output = layer.paged(batch, varlen_attn).attend(query, key, value, LayerCall(0, scale=0.125))
        outputs.append(output[:num_tokens])
    assert torch.equal(*outputs)


def counted(family: str, dtype: torch.dtype) -> tuple[Rig, Counted]:
    backend = AUTO if dtype == torch.float32 else PagedAttention.name
    rig, kernel = Rig(family, device=CUDA, dtype=dtype, attention=backend), Counted()
    model = rig.engine._model
    if model.attention.name == PagedAttention.name:
        model._use(PagedAttention(model.facts, model.cache, kernel), compiled=False)
    return rig, kernel


@half_types
@paging_families
@pytest.mark.parametrize(
    "history",
    [
        histories.a_tree_equals_its_branches_alone,
        histories.sessions_in_one_step_equal_each_alone,
        histories.masks_of_every_width_stand_side_by_side,
        histories.any_history_equals_a_fresh_start,
    ],
)
def test_paged_steps(history: Callable[[Rig], None], family: str, dtype: torch.dtype) -> None:
    rig, kernel = counted(family, dtype)
    history(rig)
    assert kernel.num_calls > 0


def test_without_16_bits_nothing_pages() -> None:
    rig, kernel = counted("llama", torch.float32)
    histories.a_tree_equals_its_branches_alone(rig)
    assert kernel.num_calls == 0


@paging_families
def test_large_paged_steps_run_beside_captured_ones(family: str) -> None:
    rig = Rig(family, device=CUDA, dtype=torch.bfloat16, attention=StaticAttention.name, captured=True)
    kernel, recorder = Counted(), CountingRecorder()
    model = graphed(rig.engine, recorder)._model
    assert isinstance(model.attention, StaticAttention)
    model.attention._large = PagedAttention(model.facts, model.cache, kernel)
    slot, other = rig.engine.acquire(), rig.engine.acquire()
    line, other_line = random_line(COMPILED_TOKENS_MAX + 1, seed=1), random_line(5, seed=2)
    for num_replays in (1, 2):
        logits = rig.engine.step([Job(slot, line), Job(other, other_line)]).logits
        rig.close(logits[0], rig.reference(line)[-1])
        rig.close(logits[1], rig.reference(other_line)[-1])
        assert kernel.num_calls > 0
        kernel.num_calls = 0
        line.append(5)
        other_line.append(6)
        with never_waiting():
            logits = rig.engine.step([Job(slot, line), Job(other, other_line)]).logits
        rig.close(logits[0], rig.reference(line)[-1])
        assert (recorder.num_replays, kernel.num_calls) == (num_replays, 0)
        line.extend(random_line(COMPILED_TOKENS_MAX + 1, seed=3))
        other_line.append(7)
