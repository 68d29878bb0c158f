"""Whether the kernels of the `tree` backend compute on a device what torch does: see `outrider.engine.gpu.trial`."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from outrider.engine.attention.by_session import TorchAttention
from outrider.engine.attention.interface import AttentionBackend, BatchTensors, LayerCall, ModelFacts
from outrider.engine.gpu.trial import difference, small_step, trial, triton_problem
from outrider.engine.gpu.work_list import PAGE_CELLS, tile_tokens
from outrider.engine.kv_cache.tensors import KVCache

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference that rounding explains, relative to the largest number."""


def tokens_of(facts: ModelFacts) -> int:
    """How many tokens the tiles of such a model hold."""
    groups = [layer.num_heads // layer.num_kv_heads for layer in facts.layers]
    return tile_tokens(groups, max(max(layer.key_size, layer.value_size) for layer in facts.layers))


def problem(backend: type[AttentionBackend], facts: ModelFacts) -> str:
    """Why `backend`, which is on the kernels, cannot serve such a model here; empty if it can."""
    return triton_problem(facts.device) or tried(backend, facts)


def tried(backend: type[AttentionBackend], facts: ModelFacts) -> str:
    """Runs a small tree through each kind of layer; empty if the kernels do as torch's own operations."""
    from outrider.engine.gpu import launch  # it wants Triton

    shared_bytes = launch.machine(facts.device).shared_bytes
    num_tokens = tokens_of(facts)
    for layer in dict.fromkeys(facts.layers):
        num_rows = num_tokens * layer.num_heads // layer.num_kv_heads
        if launch.tile(num_rows, layer.key_size, layer.value_size, facts.dtype, shared_bytes) is None:
            return f"heads of {layer.key_size} numbers in {facts.dtype} do not fit in the device's shared memory"
        if found := trial(partial(_off, backend, facts._replace(layers=[layer])), _TOLERANCE[facts.dtype]):
            return found
    return ""


def _off(backend: type[AttentionBackend], facts: ModelFacts) -> float:
    return difference(*(_attended(each, facts) for each in (backend, TorchAttention)))


@torch.inference_mode()
def _attended(backend: type[AttentionBackend], facts: ModelFacts) -> Tensor:
    """What three tokens get, [3, H, value_size]: the last of a line of two pages, and two nodes below it."""
    (layer,) = facts.layers
    batch = small_step(PAGE_CELLS + 2, 1)
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(facts.device, facts.dtype)

    cache = KVCache(facts.layers, 2, PAGE_CELLS, facts.cell_dtype, facts.device)
    for each in (*cache.keys, *cache.values):
        each.copy_(noise(*each.shape))
    query = noise(layer.num_heads, 3, layer.key_size)
    key, value = noise(layer.num_kv_heads, 3, layer.key_size), noise(layer.num_kv_heads, 3, layer.value_size)
    numbers = (batch.token_ids, batch.positions, batch.rows, batch.write_cells, batch.blocks)
    tensors = BatchTensors(*(torch.tensor(each, device=facts.device) for each in numbers))
    step = backend(facts, cache).prepare(batch, tensors)
    return step.attend(query, key, value, LayerCall(0, layer.key_size**-0.5))
