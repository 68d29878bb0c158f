"""Logit bias: what a request adds to the logits of single tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.processor import Row
from outrider.engine.transfer import tensor_on


class LogitBias:
    """A `LogitsProcessor`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}
        """Of each session the token ids and what is added to their logits."""

    def open(
        self, slot: int, params: SamplingParams, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> bool:
        """See `LogitsProcessor`."""
        if not params.logit_bias:
            return False
        token_ids, biases = zip(*params.logit_bias, strict=True)
        self._biases[slot] = (
            tensor_on(self._device, token_ids, torch.int64),
            tensor_on(self._device, biases, torch.float32),
        )
        return True

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """Changes nothing: a bias holds for the whole output."""

    def close(self, slot: int) -> None:
        """See `LogitsProcessor`."""
        self._biases.pop(slot, None)

    def process(self, logits: Tensor, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """See `LogitsProcessor`."""
        for index, row in zip(indices, rows, strict=True):
            logits[index].index_add_(0, *self._biases[row.slot])
