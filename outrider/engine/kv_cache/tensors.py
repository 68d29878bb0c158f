"""The memory of the KV cache: the keys and values of all layers, cell by cell."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import native
from outrider.engine.kv_cache.cells import movable
from outrider.engine.kv_cache.slots import Move
from outrider.engine.load.probe import LayerFacts
from outrider.engine.transfer import send


class KVCache:
    """The keys and values of one model, for the device thread alone. L layers."""

    def __init__(
        self,
        layers: Sequence[LayerFacts],
        num_blocks: int,
        block_cells: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`num_blocks` blocks of `block_cells` cells, and one more for what padding writes.

        Layers of one shape share one tensor, so that moving a cell is one operation for all. Cells start as zeros: a
        masked cell contributes 0 times its value, which must be finite. On a CPU they take no memory until they are
        written to.

        Raises UnsupportedModelError if the device has no room for them.
        """
        num_cells = (num_blocks + 1) * block_cells
        self.block_cells = block_cells
        self.scratch_cell = num_cells - 1
        """The cell that takes what padding writes. No session holds its block."""
        self.storages: list[Tensor] = []
        """Each [layers' keys and values of one shape, num_cells, num_kv_heads, key_size or value_size], `movable`."""
        planes: dict[tuple[int, int], list[tuple[int, bool]]] = {}
        for layer, facts in enumerate(layers):
            planes.setdefault((facts.num_kv_heads, facts.key_size), []).append((layer, True))
            planes.setdefault((facts.num_kv_heads, facts.value_size), []).append((layer, False))
        found: dict[tuple[int, bool], Tensor] = {}
        for (num_kv_heads, size), members in planes.items():
            shape = (len(members), num_cells, num_kv_heads, size)
            try:
                storage = _zeros(shape, dtype, device)
            except (RuntimeError, OSError, OverflowError) as error:
                gigabytes = math.prod(shape) * dtype.itemsize / 1e9
                raise UnsupportedModelError(
                    f"{device} has no room for {gigabytes:.1f} GB of keys and values beside the model; "
                    "lower --kv-memory, --max-sessions or --max-context"
                ) from error
            self.storages.append(movable(storage))
            found.update(zip(members, storage.unbind(0), strict=True))
        self.keys = tuple(found[layer, True] for layer in range(len(layers)))
        """L x [num_cells, num_kv_heads, key_size]"""
        self.values = tuple(found[layer, False] for layer in range(len(layers)))
        """L x [num_cells, num_kv_heads, value_size]"""

    def move(self, moves: Sequence[Move]) -> None:
        """Copies cells in all layers, every source read before any destination is written."""
        if not moves:
            return
        device = self.storages[0].device
        if native.available(device):
            torch.ops.outrider_native.move_cells.default(self.storages, *zip(*moves, strict=True))
            return
        sources, destinations = send(list(zip(*moves, strict=True)), device)
        for storage in self.storages:
            storage.index_copy_(1, destinations, storage.index_select(1, sources))


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, which on a CPU are pages that the operating system has only promised and hands out at their first write.

    Raises what torch or the operating system does where there is no room.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
