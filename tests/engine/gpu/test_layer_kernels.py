"""Between a layer's products, against float64: norms with residuals, rotary positions and writes, gates; moves."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from outrider.engine.batch import PackedBatch
from outrider.engine.gpu import layer_kernels
from outrider.engine.gpu.cell_moves import move_cells
from outrider.engine.gpu.launch import DeviceWork
from outrider.engine.gpu.layer_kernels import Norm
from outrider.engine.gpu.work_list import MOVES_MAX, work_list
from outrider.engine.kv_cache.cells import FP8, stored
from outrider.engine.kv_cache.slots import Move
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.load.probe import LayerFacts

pytestmark = pytest.mark.usefixtures("interpreter")

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2e-2}
"""Largest norm of a difference, relative to that of the output: a few roundings of the type. The interpreter rounds to
bfloat16 toward zero, a GPU does not."""

types = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() <= TOLERANCES[dtype] * wanted.norm()


def normalized(x: Tensor, norm: Norm) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + norm.epsilon).sqrt() * norm.weight.double()


@types
@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("has_delta", [True, False])
def test_norm_with_residual(size: int, has_delta: bool, dtype: torch.dtype, noise: torch.Generator) -> None:
    before, delta, weight = (
        torch.randn(*shape, generator=noise).to(dtype) for shape in ((3, size), (3, size), (size,))
    )
    norm, summed = Norm(weight, 1e-3), before.clone()
    normed = layer_kernels.add_norm(summed, delta if has_delta else None, norm)
    close(summed, before.double() + delta.double() * has_delta, dtype)
    close(normed, normalized(summed, norm), dtype)


@types
@pytest.mark.parametrize("has_norms", [True, False])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "size"), [(4, 2, 16), (3, 1, 24)])
def test_rotary_positions_and_writes(
    num_heads: int, num_kv_heads: int, size: int, has_norms: bool, dtype: torch.dtype, noise: torch.Generator
) -> None:
    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise).to(dtype)

    num_tokens, cells = 3, [7, 2, 9]
    batch = PackedBatch(write_cells=cells, token_ids=[0] * 3, positions=[0] * 3, limits=[0] * 3, path_offsets=[0] * 4)
    work = work_list(batch, (None,), 4)
    on_device = DeviceWork(work.layout, torch.frombuffer(work.numbers, dtype=torch.int32), 0, 4)
    projected = some(num_tokens, (num_heads + 2 * num_kv_heads) * size)
    cosine, sine = some(num_tokens, size), some(num_tokens, size)
    norms = (Norm(some(size), 1e-3), Norm(some(size), 1e-3)) if has_norms else None
    caches = [some(12, num_kv_heads, size) for _ in range(2)]
    before = [cache.clone() for cache in caches]
    found = layer_kernels.rotate_and_write(projected, cosine, sine, norms, caches[0], caches[1], on_device)

    query, key, value = projected.double().unflatten(1, (-1, size)).split([num_heads, num_kv_heads, num_kv_heads], 1)
    if norms is not None:
        query, key = normalized(query, norms[0]), normalized(key, norms[1])
    wanted = [rotated(each, cosine, sine) for each in (query, key)]
    close(found, wanted[0], dtype)
    close(caches[0][cells], wanted[1], dtype)
    assert torch.equal(caches[1][cells].double(), value)
    others = [cell for cell in range(12) if cell not in cells]
    assert all(torch.equal(cache[others], old[others]) for cache, old in zip(caches, before, strict=True))


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine.double()[:, None] + torch.cat([-second, first], -1) * sine.double()[:, None]


def test_cells_take_what_is_finite() -> None:
    batch = PackedBatch(write_cells=[1], token_ids=[0], positions=[0], limits=[0], path_offsets=[0, 0])
    work = work_list(batch, (None,), 4)
    on_device = DeviceWork(work.layout, torch.frombuffer(work.numbers, dtype=torch.int32), 0, 4)
    projected = torch.tensor([float("nan"), float("inf"), -3e38, 1.0]).repeat(3)[None]
    keys, values = torch.ones(2, 1, 4), torch.ones(2, 1, 4)
    layer_kernels.rotate_and_write(projected, torch.ones(1, 4), torch.zeros(1, 4), None, keys, values, on_device)
    assert values[1].tolist() == [[0.0, 999999986991104.0, -999999986991104.0, 1.0]]
    assert keys.isfinite().all()


def test_cells_of_eight_bits_take_what_torch_puts_there(noise: torch.Generator) -> None:
    batch = PackedBatch(write_cells=[1], token_ids=[0], positions=[0], limits=[0], path_offsets=[0, 0])
    work = work_list(batch, (None,), 4)
    on_device = DeviceWork(work.layout, torch.frombuffer(work.numbers, dtype=torch.int32), 0, 4)
    projected = 100.0 * torch.randn(1, 3 * 64, generator=noise) ** 3
    caches = [torch.zeros(2, 1, 64).to(FP8) for _ in range(2)]
    cosine, sine = torch.ones(1, 64), torch.zeros(1, 64)
    layer_kernels.rotate_and_write(projected, cosine, sine, None, caches[0], caches[1], on_device)
    for cache, content in zip(caches, projected.view(3, 64)[1:], strict=True):
        assert torch.equal(cache[1, 0].float(), stored(content, FP8).float())


@types
@pytest.mark.parametrize("size", [16, 1100])
def test_gates(size: int, dtype: torch.dtype, noise: torch.Generator) -> None:
    both = (torch.randn(2, 2 * size, generator=noise) * 4).to(dtype)
    gate, up = both.double().chunk(2, 1)
    close(layer_kernels.gated(both), gate * gate.sigmoid() * up, dtype)


@pytest.mark.parametrize("num_moves", [0, 1, 7, MOVES_MAX])
def test_moves_read_everything_before_they_write(num_moves: int, noise: torch.Generator) -> None:
    """In rows and in circles, in layers of unequal shapes."""
    layers = [LayerFacts(4, 2, 12, 8, None), LayerFacts(4, 1, 12, 8, None)]
    caches = [KVCache(layers, 2, 150, torch.float32, CPU) for _ in range(2)]
    for one, other in zip(caches[0].storages, caches[1].storages, strict=True):
        other.copy_(one.copy_(torch.randn(one.shape, generator=noise)))
    rng = random.Random(num_moves)
    sources = rng.sample(range(300), num_moves)
    destinations = rng.sample(sources, num_moves // 2) + rng.sample(range(300, 430), num_moves - num_moves // 2)
    moves = [Move(*cells) for cells in zip(sources, destinations, strict=True)]
    batch = PackedBatch(moves=moves)
    work = work_list(batch, (None,), 4)
    numbers = torch.frombuffer(work.numbers, dtype=torch.int32)
    for storage in caches[0].storages:
        move_cells(storage, numbers[work.layout.first_move :])
    caches[1].move(moves)
    assert all(torch.equal(*pair) for pair in zip(caches[0].storages, caches[1].storages, strict=True))
