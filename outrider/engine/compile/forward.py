"""Forward passes: packed batches in, logits out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from outrider.engine.batch import PackedBatch, rounded
from outrider.engine.compile.decoder import Decoder


class Forward(Protocol):
    """One way to run a packed batch through a model."""

    def run(self, batch: PackedBatch) -> Tensor | None:
        """Writes the batch's keys and values to the KV cache and returns the logits of its wanted rows,
        [R, vocab_size], on the model's device; they are the caller's own.

        The batch is padded on the way, to `num_tokens_min` tokens at least. None if this pass does not take such a
        batch, which is then as it was.
        """
        ...


class EagerForward:
    """Takes every batch, operator by operator."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def run(self, batch: PackedBatch) -> Tensor:
        """See `Forward`."""
        size = rounded(max(batch.num_tokens_min, len(batch.token_ids)))
        return self._decoder.run(batch, size, rounded(len(batch.rows)))
