"""Paged attention: a few kernels for all sessions, which read keys and values where the block table says they lie.

The kernel is FlashAttention (Dao, arXiv 2307.08691) by way of `torch.nn.attention.varlen`. It knows no trees, so what a
tree node sees is read in two parts, the line and the node's own path, which are put together exactly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from outrider.engine.attention.by_session import SessionSteps, steps_of, write
from outrider.engine.attention.interface import (
    NARROW_CELLS,
    AttentionBackend,
    AttentionStep,
    BatchTensors,
    LayerCall,
    ModelFacts,
)
from outrider.engine.attention.paged_batch import Call, PagedBatch, load
from outrider.engine.batch import PackedBatch
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.load.probe import LayerFacts

PAGE_CELLS = 256
"""Blocks that the kernel reads are of a multiple of so many cells."""

_HEAD_SIZE_MAX = 256
_HEAD_SIZE_STEP = 8
"""The kernel's bounds on the sizes of heads."""

CAPABILITY_MIN = (8, 0)
"""The oldest architecture that it runs on."""

_NUM_SPLITS = 1
"""Among how many groups of threads the kernel divides one query's keys. More than one gives wrong results where it
reads blocks (pytorch/pytorch#194167), and results that depend on who else is in the batch."""

_KEYWORDS = ("enable_gqa", "seqused_k", "block_table", "num_splits")
"""What the kernel must take to read blocks. That of torch 2.11 takes none of them."""

Kernel = Callable[..., Any]
"""`torch.nn.attention.varlen.varlen_attn`, or what computes the same."""


def lacking(kernel: Kernel) -> list[str]:
    """The keywords that `kernel` does not take, and without which it reads no blocks."""
    return [name for name in _KEYWORDS if name not in inspect.signature(kernel).parameters]


def runs_on(device: torch.device) -> bool:
    """Whether the kernel reads blocks on `device`. It is tried: not all builds of torch can, nor say so beforehand."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY_MIN:
        return False
    page = torch.zeros(1, PAGE_CELLS, 1, _HEAD_SIZE_STEP, dtype=torch.float16, device=device)
    offsets, zero = (torch.arange(end, dtype=torch.int32, device=device) for end in (2, 1))
    try:
        varlen_attn(
            page[0, :1],
            page,
            page,
            offsets,
            offsets,
            1,
            1,
            seqused_k=offsets[1:],
            block_table=zero[None],
            num_splits=_NUM_SPLITS,
        )
    except RuntimeError:
        return False
    return True


def can_page(layer: LayerFacts, dtype: torch.dtype) -> bool:
    """Whether the kernel computes the attention of `layer` where no window hides anything."""
    return (
        dtype in (torch.float16, torch.bfloat16)
        and not layer.shapes_scores
        and layer.key_size == layer.value_size <= _HEAD_SIZE_MAX
        and layer.key_size % _HEAD_SIZE_STEP == 0
    )


def merged(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    """Attention over two sets of keys, [Q, H, value_size], from the attention over each and its LSE [H, Q].

    The LSE (log-sum-exp) is the logarithm of the sum of exponentials of the scores, so each part weighs what its keys
    weigh in the softmax over both (Milakov and Gimelshein, arXiv 1805.02867, section 3.1; so do the parts of
    "Flash-Decoding", Dao, Haziza, Massa and Sizov 2023).
    """
    weight = torch.sigmoid(first_lse - second_lse).transpose(0, 1).unsqueeze(-1)  # [Q, H, 1] of the first
    return torch.lerp(second.float(), first.float(), weight).to(first.dtype)


class PagedStep(NamedTuple):
    """What a layer needs beside its own queries, keys and values. L layers."""

    parts: PagedBatch
    by_session: SessionSteps
    """The caches, where to write, and what the layers that do not page need, if there are any."""
    pages: tuple[bool, ...]
    """[L]: whether the layer pages, in this step."""
    kernel: Kernel

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCall) -> Tensor:
        """`AttentionStep.attend`."""
        if not self.pages[layer.index]:
            return self.by_session.attend(query, key, value, layer)
        scale = layer.scale
        keys, values = self.by_session.key_caches[layer.index], self.by_session.value_caches[layer.index]
        write(keys, values, self.by_session.write_cells, key, value)
        key_blocks, value_blocks = (cache.unflatten(0, (-1, self.by_session.block_cells)) for cache in (keys, values))
        queries = query.transpose(0, 1)  # [N, H, key_size]
        output = queries.new_zeros(*queries.shape[:2], value.shape[-1])  # padding tokens see nothing
        runs, fans, paths, path_cells, path_places = self.parts
        if runs is not None:
            attended, _ = self._call(runs, queries, key_blocks, value_blocks, scale, causal=True)
            output.index_copy_(0, runs.tokens, attended)
        if fans is not None:
            attended, lse = self._call(fans, queries, key_blocks, value_blocks, scale)
            if paths is not None:
                path_keys, path_values = keys.index_select(0, path_cells), values.index_select(0, path_cells)
                below, below_lse = self._call(paths, queries, path_keys, path_values, scale)
                line, line_lse = attended.index_select(0, path_places), lse.index_select(1, path_places)
                attended.index_copy_(0, path_places, merged(line, line_lse, below, below_lse))
            output.index_copy_(0, fans.tokens, attended)
        return output

    def _call(
        self, call: Call, queries: Tensor, keys: Tensor, values: Tensor, scale: float, *, causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Attention over the call's queries, [Q, H, value_size], and its LSE [H, Q].

        The shape of the LSE is the kernel's; the documentation of `varlen_attn` has it the other way round.
        """
        return self.kernel(
            queries.index_select(0, call.tokens),
            keys,
            values,
            call.query_offsets,
            call.key_offsets,
            call.max_queries,
            call.max_keys,
            return_aux=AuxRequest(lse=True),
            scale=scale,
            window_size=(-1, 0) if causal else (-1, -1),
            enable_gqa=True,
            seqused_k=call.num_keys,
            block_table=call.table,
            num_splits=_NUM_SPLITS,
        )


class PagedAttention(AttentionBackend):
    """`paged`: by blocks the layers that the kernel knows, where no window hides anything; else session by session."""

    name = "paged"

    def __init__(self, facts: ModelFacts, cache: KVCache, kernel: Kernel = varlen_attn) -> None:
        """See `AttentionBackend`."""
        super().__init__(facts, cache)
        self._can_page = [can_page(layer, facts.dtype) for layer in facts.layers]
        self._kernel = kernel

    @classmethod
    def problem(cls, facts: ModelFacts) -> str:
        """See `AttentionBackend.problem`."""
        if facts.kv_cache_dtype is not None:
            return NARROW_CELLS
        if not any(can_page(layer, facts.dtype) for layer in facts.layers):
            return "its kernel takes 16-bit types, heads of a multiple of 8 up to 256 numbers, and plain scores alone"
        if missing := lacking(varlen_attn):
            return (
                f"its kernel is varlen_attn of torch, which takes no {' or '.join(missing)} in {torch.__version__}; "
                "install a newer torch"
            )
        if not runs_on(facts.device):
            return "its kernel needs a CUDA device of architecture 8.0 or newer, and a torch that has FlashAttention"
        return ""

    @classmethod
    def block_size(cls, facts: ModelFacts) -> int:
        """What the kernel reads."""
        return PAGE_CELLS

    def prepare(self, batch: PackedBatch, tensors: BatchTensors) -> AttentionStep:
        """See `AttentionBackend.prepare`."""
        last_position = max(batch.positions)
        pages = tuple(
            can_page and (layer.window is None or layer.window > last_position)
            for can_page, layer in zip(self._can_page, self._facts.layers, strict=True)
        )
        by_session = steps_of(batch, tensors, self._facts, self._cache, [not page for page in pages])
        if not any(pages):
            return by_session
        return PagedStep(load(batch, self._facts.device), by_session, pages, self._kernel)
