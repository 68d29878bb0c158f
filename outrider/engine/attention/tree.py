"""Ragged tree attention on GPUs: a few launches for each layer, whatever sessions, trees and windows there are.

The kernels are those of `outrider.engine.gpu`. Nothing that a launch is given depends on the batch but a list of
integers in the device's memory, so steps are captured for a number of tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outrider.engine.attention.interface import AttentionBackend, BatchTensors, LayerCall, ModelFacts
from outrider.engine.attention.tree_trial import problem, tokens_of
from outrider.engine.batch import CAPTURED_SIZES, CAPTURED_TOKENS_MAX, PackedBatch, bucket
from outrider.engine.gpu.work_list import (
    MOVES_MAX,
    PAGE_CELLS,
    POSITIONS,
    ROWS,
    SPLIT_CELLS,
    TOKEN_IDS,
    Layout,
    num_parts,
    work_list,
)
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.transfer import queued, staged

if TYPE_CHECKING:
    from outrider.engine.gpu.launch import DeviceWork

PARTS_PER_TOKEN = 64
"""Room in a captured step, in splits for each token on the average: 32k of context. Longer ones are not captured."""

PARTS_MAX = 8192
"""Room in a larger captured step: 32 splits, 16k of context, for each of 256 tokens on the average. Its sums take 16 KB
a part with 32 heads of 128 numbers, 134 MB that all captured steps share."""


def parts_max(num_tokens: int) -> int:
    """Most parts of a captured step over so many tokens; at most as many items, and pages by the split."""
    return min(num_tokens * PARTS_PER_TOKEN, PARTS_MAX)


@dataclass(frozen=True, slots=True)
class TreeStep:
    """A batch as the kernels read it."""

    work: DeviceWork
    cache: KVCache
    windows: Sequence[int]
    """Of each layer, by its index among all windows: [L]."""

    @property
    def token_ids(self) -> Tensor:
        """[1, N] int64"""
        return self.work.row(TOKEN_IDS).long()[None]

    @property
    def positions(self) -> Tensor:
        """[1, N] int64"""
        return self.work.row(POSITIONS).long()[None]

    @property
    def rows(self) -> Tensor:
        """[N] int64: the tokens whose logits are wanted, filled up with token 0."""
        return self.work.row(ROWS).long()

    def move(self) -> None:
        """Moves the cells that the batch says, before anything is written."""
        from outrider.engine.gpu import cell_moves  # it wants Triton

        for storage in self.cache.storages:
            cell_moves.move_cells(storage, self.work.numbers[self.work.layout.first_move :])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCall) -> Tensor:
        """`AttentionStep.attend`."""
        from outrider.engine.gpu import launch  # it wants Triton

        key_cache, value_cache = self.cache.keys[layer.index], self.cache.values[layer.index]
        launch.write(key, key_cache, self.work)
        launch.write(value, value_cache, self.work)
        scoring = launch.Scoring(layer.scale, layer.softcap, layer.sinks)
        return launch.attention(query, key_cache, value_cache, self.work, self.windows[layer.index], scoring)


class TreeAttention(AttentionBackend):
    """`tree`: kernels in Triton over pages of the KV cache, for every layer and every step."""

    name = "tree"
    moves_max = MOVES_MAX
    buckets: ClassVar[Sequence[int]] = CAPTURED_SIZES[::-1]
    """The numbers of tokens whose steps are worth capturing, those that take the most memory first, since the others
    use it, too."""

    def __init__(self, facts: ModelFacts, cache: KVCache) -> None:
        """See `AttentionBackend`. Triton is installed."""
        super().__init__(facts, cache)
        self._windows = tuple(dict.fromkeys(layer.window for layer in facts.layers))
        self._window_of = [self._windows.index(layer.window) for layer in facts.layers]
        self._tile_tokens = tokens_of(facts)
        self._buffer: Tensor | None = None

    @property
    def sees_trees(self) -> bool:
        """Whether all layers see the deepest path of a tree, so that a mask tells it."""
        return all(window is None or window >= TREE_CELLS_MAX for window in self._windows)

    @property
    def windows(self) -> Sequence[int | None]:
        """Of its layers, each once, in the order in which work lists have them."""
        return self._windows

    @classmethod
    def problem(cls, facts: ModelFacts) -> str:
        """See `AttentionBackend.problem`. The kernels are tried: not every GPU and Triton has been met."""
        return problem(cls, facts)

    @classmethod
    def block_size(cls, facts: ModelFacts) -> int:
        """A page."""
        return PAGE_CELLS

    def prepare(self, batch: PackedBatch, tensors: BatchTensors) -> TreeStep:
        """See `AttentionBackend.prepare`."""
        work = work_list(batch, self._windows, self._tile_tokens)
        numbers = torch.frombuffer(work.numbers, dtype=torch.int32)
        step = self._step(work.layout, queued(numbers, self._facts.device), work.num_parts)
        if batch.moves:
            step.move()
        return step

    def size_of(self, batch: PackedBatch) -> int | None:
        """The bucket that holds `batch`; None if there is none, or no room for its context."""
        size = bucket(max(batch.num_tokens_min, len(batch.token_ids)))
        has_room = len(batch.rows) <= size and num_parts(batch) <= parts_max(size)
        return size if 0 < size <= CAPTURED_TOKENS_MAX and has_room else None

    def load(self, batch: PackedBatch, size: int) -> None:
        """Pads `batch` to `size` tokens and queues the copy that brings it to where captured steps read it."""
        batch.pad(size, self._cache.scratch_cell)
        work = work_list(batch, self._windows, self._tile_tokens)
        numbers = staged(torch.frombuffer(work.numbers, dtype=torch.int32), self._facts.device)
        self._static()[: len(numbers)].copy_(numbers, non_blocking=True)

    def read(self, size: int) -> TreeStep:
        """The batch of `size` tokens that was loaded last, read by operations that can be captured. Its cells move."""
        step = self._step(Layout(size, len(self._windows)), self._static(), parts_max(size))
        step.move()
        return step

    def _static(self) -> Tensor:
        if self._buffer is None:
            parts = parts_max(CAPTURED_TOKENS_MAX)
            layout = Layout(CAPTURED_TOKENS_MAX, len(self._windows))
            length = layout.end(parts, parts * (SPLIT_CELLS // PAGE_CELLS))
            with torch.inference_mode():  # like what other steps feed the model: a compiler tells the two kinds apart
                self._buffer = torch.zeros(length, dtype=torch.int32, device=self._facts.device)
        return self._buffer

    def _step(self, layout: Layout, numbers: Tensor, parts: int) -> TreeStep:
        from outrider.engine.gpu.launch import DeviceWork  # it wants Triton

        return TreeStep(DeviceWork(layout, numbers, parts, self._tile_tokens), self._cache, self._window_of)
