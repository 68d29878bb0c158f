"""A decoder model with its key and value caches: packed batches in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.engine.attention import ATTENTION, RaggedBatch
from outrider.engine.batch import PackedBatch
from outrider.engine.probe import LayerFacts, probe_layers
from outrider.engine.slots import Move


class RaggedModel:
    """Runs packed batches. Built once at start; used by the device thread alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes over `model`. Raises UnsupportedModelError if its layers cannot run on the ragged attention."""
        self.layers: list[LayerFacts] = probe_layers(model)
        model.set_attn_implementation(ATTENTION)
        self._model = model
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size: int = model.config.get_text_config().vocab_size
        self.windows: tuple[int | None, ...] = tuple(dict.fromkeys(facts.window for facts in self.layers))
        self._caches: list[Tensor] = []
        self._key_caches: tuple[Tensor, ...] = ()
        self._value_caches: tuple[Tensor, ...] = ()

    def allocate(self, num_cells: int) -> None:
        """Makes the caches. Layers of one shape share one tensor, so that moving a cell is one operation for all.

        Cells start as zeros: a masked cell contributes 0 times its value, which must be finite.
        """
        planes: dict[tuple[int, int], list[tuple[int, bool]]] = {}
        for layer, facts in enumerate(self.layers):
            planes.setdefault((facts.num_kv_heads, facts.key_size), []).append((layer, True))
            planes.setdefault((facts.num_kv_heads, facts.value_size), []).append((layer, False))
        caches: dict[tuple[int, bool], Tensor] = {}
        for (num_kv_heads, size), members in planes.items():
            storage = torch.zeros(
                len(members), num_cells, num_kv_heads, size, dtype=self.dtype, device=self.device
            )  # [planes, num_cells, num_kv_heads, size]
            self._caches.append(storage)
            caches.update(zip(members, storage.unbind(0), strict=True))
        layers = range(len(self.layers))
        self._key_caches = tuple(caches[layer, True] for layer in layers)
        self._value_caches = tuple(caches[layer, False] for layer in layers)

    def move(self, moves: list[Move]) -> None:
        """Copies cells (indices into the caches) in all layers, every source read before any destination is written."""
        if not moves:
            return
        sources = torch.tensor([move.source for move in moves], device=self.device)
        destinations = torch.tensor([move.destination for move in moves], device=self.device)
        for storage in self._caches:
            storage.index_copy_(1, destinations, storage.index_select(1, sources))

    def forward(self, batch: PackedBatch) -> Tensor:
        """Feeds the batch and returns the logits of its wanted rows, [num_rows, vocab_size], on the model's device."""
        device = self.device
        masks = {
            window: torch.zeros(visible.shape, dtype=self.dtype).masked_fill_(~visible, float("-inf")).to(device)
            for window, visible in batch.masks.items()
        }
        ragged = RaggedBatch(
            key_caches=self._key_caches,
            value_caches=self._value_caches,
            masks=tuple(masks[facts.window] for facts in self.layers),
            write_cells=batch.write_cells.to(device),
            spans=batch.spans,
        )
        rows = batch.rows.to(device)
        output = self._model(
            input_ids=batch.token_ids.to(device),
            position_ids=batch.positions.to(device),
            use_cache=False,
            logits_to_keep=rows,
            ragged=ragged,
        )
        return output.logits[0, : batch.num_rows]
