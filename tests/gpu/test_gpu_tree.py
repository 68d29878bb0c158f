"""The kernels of the `tree` backend on a real device; `tests/engine/gpu` interprets the same without one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from outrider.engine.attention.interface import LayerCall, model_facts
from outrider.engine.attention.registry import AUTO, select
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.gpu.trial import CAPABILITY_MIN
from outrider.engine.gpu.work_list import PAGE_CELLS
from outrider.engine.jobs import LINE_END, Job
from tests.engine import histories
from tests.engine.gpu.twin import Ran
from tests.engine.histories import HALF_FAMILIES, HALF_TOLERANCES, Rig, built, random_line
from tests.engine.layers import Layer, packed, random_jobs
from tests.engine.tiny_models import FAMILIES
from tests.gpu.device import CUDA, never_waiting, on_cuda

pytestmark = on_cuda(CAPABILITY_MIN)

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest difference of what attention returns for values around 1."""

TILE_TOKENS = 16

types = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
half_types = pytest.mark.parametrize("dtype", HALF_TOLERANCES, ids=str)


def layer_of(dtype: torch.dtype, size: int = 64, window: int | None = None) -> Layer:
    return Layer(
        num_heads=8,
        num_kv_heads=2,
        key_size=size,
        value_size=size,
        window=window,
        block_cells=PAGE_CELLS,
        max_context=1500,
        num_blocks=400,
        dtype=dtype,
        device=CUDA,
    )


@types
@pytest.mark.parametrize("size", [64, 80, 128])
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize(("softcap", "has_sinks"), [(0.0, False), (30.0, False), (0.0, True)])
def test_random_batches(dtype: torch.dtype, size: int, window: int | None, softcap: float, has_sinks: bool) -> None:
    for seed in range(4):
        layer, rng = layer_of(dtype, size, window), random.Random(seed)
        batch = packed(layer, random_jobs(layer, rng, num_sessions=6, max_new=200, max_nodes=9, max_held=1200), 3)
        inputs = layer.inputs(len(batch.token_ids))
        call = LayerCall(0, size**-0.5, softcap, layer.noise(8) if has_sinks else None)
        with torch.inference_mode():
            found = Ran(layer, batch, inputs, call, TILE_TOKENS).output
            expected = layer.by_session(batch).attend(*inputs, call)
        torch.testing.assert_close(found.float(), expected.float(), atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@types
def test_a_session_gets_the_same_bits_alone_and_beside_others(dtype: torch.dtype) -> None:
    layer = layer_of(dtype)
    line = random_line(1100, seed=1)
    parents = [LINE_END, LINE_END, 0, 1, 1]
    first = Job(layer.held(line), [*line, 1], parents, range(5), wanted=range(LINE_END, 5))
    others = random_jobs(layer, random.Random(2), num_sessions=7, max_new=200, max_nodes=9, max_held=1200)
    inputs = layer.inputs(3000)
    outputs: list[torch.Tensor] = []
    for jobs in ([first, *others], [first]):
        batch = packed(layer, jobs, 3)
        own = tuple(each[:, : len(batch.token_ids)] for each in inputs)
        with torch.inference_mode():
            outputs.append(Ran(layer, batch, own, LayerCall(0, 0.125), TILE_TOKENS).output[:6])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_takes_it(family: str) -> None:
    assert select(AUTO, model_facts(built(family, CUDA, torch.float32))) is TreeAttention


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "history",
    [
        histories.a_tree_equals_its_branches_alone,
        histories.sessions_in_one_step_equal_each_alone,
        histories.masks_of_every_width_stand_side_by_side,
        histories.any_history_equals_a_fresh_start,
    ],
)
def test_steps_of_each_family(history: Callable[[Rig], None], family: str) -> None:
    history(Rig(family, device=CUDA, attention=TreeAttention.name))


@half_types
@pytest.mark.parametrize("family", HALF_FAMILIES)
def test_steps_in_16_bits(family: str, dtype: torch.dtype) -> None:
    histories.a_tree_equals_its_branches_alone(Rig(family, device=CUDA, dtype=dtype, attention=TreeAttention.name))


def test_a_captured_step_never_waits() -> None:
    rig = Rig("llama", device=CUDA, attention=TreeAttention.name, captured=True)
    assert list(rig.engine.warm_up())
    slot, line = rig.engine.acquire(), random_line(20, seed=1)
    rig.engine.step([Job(slot, line)])
    line.append(5)
    with never_waiting():
        logits = rig.engine.step([Job(slot, line, [LINE_END, 0, 0], [1, 2, 3], range(LINE_END, 3))]).logits
    rig.close(logits[0], rig.reference(line)[-1])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_known_models_run_fused(family: str) -> None:
    """In captured steps and in larger ones."""
    for captured in (True, False):
        rig = Rig(family, device=CUDA, attention=TreeAttention.name, captured=captured)
        assert rig.engine.not_fused == ""
        assert not captured or list(rig.engine.warm_up()) == [256, 128, 64, 32, 16, 8, 4, 2, 1]
        histories.any_history_equals_a_fresh_start(rig)
        assert rig.engine.path == ("graph" if captured else "eager")
