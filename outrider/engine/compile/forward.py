"""Forward passes: packed batches in, logits out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from outrider.engine import native
from outrider.engine.attention.native import NativeAttention
from outrider.engine.batch import PackedBatch, rounded
from outrider.engine.compile.decoder import Decoder
from outrider.engine.compile.export import TOKENS_MIN


class Forward(Protocol):
    """One way to run a packed batch through a model."""

    path: str
    """What it is called where steps are counted: graph, compiled, native or eager."""

    def run(self, batch: PackedBatch) -> Tensor | None:
        """Writes the batch's keys and values to the KV cache and returns the logits of its wanted rows,
        [R, vocab_size], on the model's device; they are the caller's own.

        The batch is padded on the way, to `num_tokens_min` tokens at least. None if this pass does not take such a
        batch, which is then as it was.
        """
        ...


class EagerForward:
    """Takes every batch, operator by operator."""

    path = "eager"

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def run(self, batch: PackedBatch) -> Tensor:
        """See `Forward`."""
        size = rounded(max(batch.num_tokens_min, len(batch.token_ids)))
        return self._decoder.run(batch, size, rounded(len(batch.rows)))


class GraphForward:
    """Takes every batch; runs an exported graph."""

    def __init__(
        self,
        run: Callable[[list[Tensor]], list[Tensor]],
        attention: NativeAttention,
        scratch_cell: int,
        path: str,
        size_of: Callable[[int], int],
    ) -> None:
        """`run` is the graph, operator by operator or compiled, as `path` says: its inputs to its output; see
        `Exported`. `size_of` tells to how many so many tokens, or rows, are padded."""
        self.path = path
        self._run = run
        self._attention = attention
        self._scratch_cell = scratch_cell
        self._size_of = size_of

    def run(self, batch: PackedBatch) -> Tensor:
        """See `Forward`."""
        num_rows = len(batch.rows)
        batch.pad(self._size_of(max(batch.num_tokens_min, len(batch.token_ids), TOKENS_MIN)), self._scratch_cell)
        rows = batch.rows + [0] * (self._size_of(max(num_rows, TOKENS_MIN)) - num_rows)
        (logits,) = self._run(
            [
                native.integers(batch.token_ids),
                native.integers(batch.positions),
                native.integers(rows),
                self._attention.described(batch),
            ]
        )
        return logits if len(rows) == num_rows else logits[:num_rows]
