"""A model of transformers over packed batches: what all forward passes but those compiled ahead of time call."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from outrider.engine.attention.interface import ATTENTION, AttentionBackend, AttentionStep, BatchTensors
from outrider.engine.attention.operator import stepping
from outrider.engine.attention.tree import TreeStep
from outrider.engine.batch import COMPILED_TOKENS_MAX, PackedBatch
from outrider.engine.transfer import send

if TYPE_CHECKING:
    from outrider.engine.gpu.fused_layers import FusedLayers

_CUDA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's, which builds a plan for each new number of queries and cells: while texts grow, at every step."""

_numbers = itertools.count()


class Decoder:
    """Calls the model with its layers attending over a batch."""

    def __init__(self, model: PreTrainedModel, attention: AttentionBackend, scratch_cell: int) -> None:
        """From now on the model's layers attend by `attention`. Padding writes to `scratch_cell`."""
        model.set_attn_implementation(ATTENTION)
        self.model = model
        self.attention = attention
        self._scratch_cell = scratch_cell
        self._number = next(_numbers)
        self._small: Callable[..., Any] = model
        self._fused: FusedLayers | None = None

    def calling(self, compiled: Callable[..., Any]) -> Decoder:
        """The same decoder, which calls `compiled` in place of the model for up to COMPILED_TOKENS_MAX tokens."""
        decoder = copy.copy(self)
        decoder._small = compiled
        return decoder

    def fused(self, layers: FusedLayers) -> Decoder:
        """The same decoder, which runs `layers` in place of the model. Its attention is `tree`."""
        decoder = copy.copy(self)
        decoder._fused = layers
        return decoder

    def run(self, batch: PackedBatch, num_tokens: int, num_rows: int) -> Tensor:
        """Pads `batch` to `num_tokens` tokens and `num_rows` rows, and returns the logits of its own rows, [R, V]."""
        batch.pad(num_tokens, self._scratch_cell)
        rows = batch.rows + [0] * (num_rows - len(batch.rows))
        numbers = (batch.token_ids, batch.positions, rows, batch.write_cells, batch.blocks)
        tensors = BatchTensors(*send(numbers, self.model.device))
        step = self.attention.prepare(batch, tensors)
        logits = self._logits(tensors.token_ids[None], tensors.positions[None], tensors.rows, step)
        return logits[: len(batch.rows)]

    def run_static(self, step: TreeStep) -> Tensor:
        """The logits of all rows of a step that is captured, [N, V]."""
        return self._logits(step.token_ids, step.positions, step.rows, step)

    def _logits(self, token_ids: Tensor, positions: Tensor, rows: Tensor, step: AttentionStep) -> Tensor:
        if self._fused is not None:
            assert isinstance(step, TreeStep)
            return self._fused.logits(token_ids[0], positions[0], rows, step.work, step.cache, step.windows)
        call = self._small if token_ids.shape[1] <= COMPILED_TOKENS_MAX else self.model
        with self._kernels(), stepping(self._number, step):
            output = call(
                input_ids=token_ids,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=rows,
                ragged_batch=self._number,
            )
        return output.logits[0]

    def _kernels(self) -> AbstractContextManager[object]:
        """Which of torch's attention kernels may run on this device."""
        return sdpa_kernel(_CUDA_KERNELS) if self.model.device.type == "cuda" else nullcontext()
