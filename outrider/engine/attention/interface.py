"""What an attention backend must do, and what it is given to do it: the one door for another kernel.

A backend is a class of one file in this folder and a row in `registry.py`; nothing else has to know it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.engine.batch import PackedBatch
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.load.probe import LayerFacts, probe_layers

ATTENTION = "outrider"
"""Name under which the attention is registered with transformers; see `operator.py`."""


class LayerCall(NamedTuple):
    """What one layer says of its attention besides queries, keys and values."""

    index: int
    """Of the layer: 0 <= index < L."""
    scale: float
    """Factor of the scores."""
    softcap: float = 0.0
    """If above 0, scores are bounded to (-softcap, softcap) (Gemma 2, arXiv 2408.00118, section 2)."""
    sinks: Tensor | None = None
    """[H]: one virtual key of that score and of zero value for each head (gpt-oss)."""


class AttentionStep(Protocol):
    """A packed batch, ready for the layers of one forward pass over N tokens."""

    def attend(
        self,
        query: Tensor,  # [H, N, key_size]
        key: Tensor,  # [num_kv_heads, N, key_size]
        value: Tensor,  # [num_kv_heads, N, value_size]
        layer: LayerCall,
    ) -> Tensor:
        """Writes the new keys and values to the tokens' cells, then attends: [N, H, value_size], contiguous.

        Queries, keys and values may have any strides but that of the last axis, which is 1. They stay as they are.
        """
        ...


class BatchTensors(NamedTuple):
    """The numbers of a packed batch that every forward pass needs on the device. N tokens, R rows."""

    token_ids: Tensor
    """[N] int64"""
    positions: Tensor
    """[N] int64"""
    rows: Tensor
    """[R] int64: the tokens whose logits are wanted."""
    write_cells: Tensor
    """[N] int64: the cell of the KV cache that takes each token's key and value."""
    blocks: Tensor
    """[B] int64: the blocks of all sessions, as `PackedBatch.blocks` lists them."""


class ModelFacts(NamedTuple):
    """What a backend has to serve. L layers."""

    layers: list[LayerFacts]
    """[L]"""
    dtype: torch.dtype
    """Of queries, keys and values."""
    device: torch.device
    kv_cache_dtype: torch.dtype | None = None
    """Of the cells, if not that of keys and values; see `kv_cache/cells.py`."""

    @property
    def cell_dtype(self) -> torch.dtype:
        """Of the KV cache."""
        return self.kv_cache_dtype or self.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take in all layers together."""
        sizes = (facts.num_kv_heads * (facts.key_size + facts.value_size) for facts in self.layers)
        return sum(sizes) * self.cell_dtype.itemsize


def model_facts(model: PreTrainedModel) -> ModelFacts:
    """Looks at `model`. Raises UnsupportedModelError if its layers cannot run on the attention interface."""
    return ModelFacts(probe_layers(model), model.dtype, model.device)


class AttentionBackend(ABC):
    """How the layers of one model attend over packed batches. Used by the device thread alone.

    Which cells a token sees is the batch's matter (`PackedBatch`): the first `limits[i]` cells of its session's slot
    and the cells of its path; of those, where its layer has a window, the ones of the last `window` positions. The
    backend finds the cells in the KV cache through the batch's list of blocks (the block table).

    It must
    - write the keys and values of all tokens to their `write_cells` before a token attends, as tokens see themselves
      and one another;
    - come within rounding of the softmax over exactly those cells, whatever stands in other cells: they may hold
      another session's text, or nothing yet (zeros);
    - return something finite, or nothing that reaches other rows, for tokens that pad the batch: those belong to no
      session, see nothing, and write to the scratch cell;
    - queue its work on the device without waiting for it: neither `prepare` nor `attend` reads a tensor back.

    It must not change the batch, nor a cell that is no token's `write_cells`: blocks are shared between sessions.
    What it keeps between steps must not depend on them: a step may fail half way and be run again.
    """

    name: ClassVar[str]
    """What --attention-backend calls it."""
    moves_max: ClassVar[int] = 0
    """How many cells its steps move themselves, by `PackedBatch.moves`; see `KVCache.move`. Where there are more, all
    are moved before the step."""

    def __init__(self, facts: ModelFacts, cache: KVCache) -> None:
        """For one model, whose keys and values are in `cache`."""
        self._facts = facts
        self._cache = cache

    @classmethod
    @abstractmethod
    def problem(cls, facts: ModelFacts) -> str:
        """Why it cannot serve such a model here, in words for whoever asked for it; empty if it can."""

    @classmethod
    @abstractmethod
    def block_size(cls, facts: ModelFacts) -> int:
        """Cells of one block of the KV cache. The smaller, the less a line leaves unused of its last block, and the
        more two lines share."""

    @abstractmethod
    def prepare(self, batch: PackedBatch, tensors: BatchTensors) -> AttentionStep:
        """What the layers need of `batch`, which is padded already, and of which `tensors` are on the device."""
