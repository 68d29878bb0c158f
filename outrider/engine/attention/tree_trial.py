"""Whether the kernels of the `tree` backend compute on a device what torch does: they are tried, small, at start."""

from __future__ import annotations

import torch

from outrider.core.protocol.refusal import first_line
from outrider.engine.attention.by_session import TorchAttention
from outrider.engine.attention.interface import AttentionBackend, BatchTensors, LayerCall, ModelFacts
from outrider.engine.batch import PackedBatch, SessionSpan
from outrider.engine.gpu.toolchain import triton_problem
from outrider.engine.gpu.work_list import PAGE_CELLS, tile_tokens
from outrider.engine.kv_cache.tensors import KVCache

CAPABILITY_MIN = (8, 0)
"""The oldest architecture for which the kernels are compiled in tests."""

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference that rounding explains, of values around 1."""


def tokens_of(facts: ModelFacts) -> int:
    """How many tokens the tiles of such a model hold."""
    groups = [layer.num_heads // layer.num_kv_heads for layer in facts.layers]
    return tile_tokens(groups, max(max(layer.key_size, layer.value_size) for layer in facts.layers))


def problem(backend: type[AttentionBackend], facts: ModelFacts) -> str:
    """Why `backend`, which is on the kernels, cannot serve such a model here; empty if it can."""
    if facts.device.type != "cuda":
        return "its kernels run on GPUs; use --device cuda"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(facts.device) < CAPABILITY_MIN:
        return "its kernels need a CUDA device of architecture 8.0 or newer"
    return triton_problem() or trial(backend, facts)


def trial(backend: type[AttentionBackend], facts: ModelFacts) -> str:
    """Runs a small tree through each kind of layer; empty if the kernels do as torch's own operations."""
    from outrider.engine.gpu import launch  # it wants Triton

    shared_bytes = launch.machine(facts.device).shared_bytes
    num_tokens = tokens_of(facts)
    for layer in dict.fromkeys(facts.layers):
        num_rows = num_tokens * layer.num_heads // layer.num_kv_heads
        if launch.tile(num_rows, layer.key_size, layer.value_size, facts.dtype, shared_bytes) is None:
            return f"heads of {layer.key_size} numbers in {facts.dtype} do not fit in the device's shared memory"
        kind = facts._replace(layers=[layer], captures=False)
        try:
            found, expected = (_attended(each, kind) for each in (backend, TorchAttention))
        except Exception as error:  # compilers, drivers and kernels raise whatever they meet
            return f"its kernels do not run here ({type(error).__name__}: {first_line(error)})"
        off = (found - expected).abs().max().item()
        if not off <= _TOLERANCE[facts.dtype]:
            return f"its kernels compute something else than torch does here, by {off:.2g}"
    return ""


@torch.inference_mode()
def _attended(backend: type[AttentionBackend], facts: ModelFacts) -> torch.Tensor:
    """What three tokens get, [3, H, value_size] float32: the last of a line of two pages, and two nodes below it."""
    (layer,) = facts.layers
    length = PAGE_CELLS + 3
    batch = PackedBatch(
        token_ids=[0, 0, 0],
        positions=[length - 1, length, length],
        write_cells=[2, 3, 4],
        limits=[length] * 3,
        path_offsets=[0, 0, 1, 2],
        path_cells=[length, length + 1],
        sessions=[SessionSpan(0, 3, 0, length + 2)],
        blocks=[1, 0],
        block_cells=PAGE_CELLS,
        rows=[0, 1, 2],
    )
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(facts.device, facts.dtype)

    cache = KVCache(facts.layers, 2, PAGE_CELLS, facts.cell_dtype, facts.device)
    for each in (*cache.keys, *cache.values):
        each.copy_(noise(*each.shape))
    query = noise(layer.num_heads, 3, layer.key_size)
    key, value = noise(layer.num_kv_heads, 3, layer.key_size), noise(layer.num_kv_heads, 3, layer.value_size)
    numbers = (batch.token_ids, batch.positions, batch.rows, batch.write_cells, batch.blocks)
    tensors = BatchTensors(*(torch.tensor(each, device=facts.device) for each in numbers))
    step = backend(facts, cache).prepare(batch, tensors)
    return step.attend(query, key, value, LayerCall(0, layer.key_size**-0.5)).float()
