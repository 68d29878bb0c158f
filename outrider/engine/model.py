"""A decoder model with its key and value caches: packed batches in, logits out."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine import native
from outrider.engine.attention.bounded import BOUNDED_ATTENTION
from outrider.engine.attention.masks import spans_and_masks
from outrider.engine.attention.paged import Kernel, PagedStep, can_page, runs_on
from outrider.engine.attention.paged_batch import load
from outrider.engine.attention.ragged import ATTENTION, Attending, RaggedBatch, stepping
from outrider.engine.attention.static import StaticBatch, StaticBuffer, StaticSize, column_sizes
from outrider.engine.batch import PackedBatch, rounded
from outrider.engine.compile.ahead import AheadForward
from outrider.engine.compile.graphs import CudaRecorder, StepGraphs
from outrider.engine.compile.just_in_time import COMPILED_TOKENS_MAX, bucket, compile_forward
from outrider.engine.kv_cache.slots import Move
from outrider.engine.load.probe import LayerFacts, probe_layers
from outrider.engine.transfer import queued, send

_CUDA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's, which builds a plan for each new number of queries and cells: while texts grow, at every step."""


_NO_SPANS = torch.empty(0, 6, dtype=torch.int64)
"""`RaggedBatch.spans` where no layer attends session by session."""

_numbers = itertools.count()


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that one token's keys and values take in all layers of `model` together.

    Raises UnsupportedModelError if its layers cannot run on the ragged attention.
    """
    return _num_bytes(probe_layers(model), model.dtype)


def _num_bytes(layers: Sequence[LayerFacts], dtype: torch.dtype) -> int:
    return sum(facts.num_kv_heads * (facts.key_size + facts.value_size) for facts in layers) * dtype.itemsize


class RaggedModel:
    """Runs packed batches. Built once at start; used by the device thread alone."""

    def __init__(self, model: PreTrainedModel, *, compiled: bool = False) -> None:
        """Takes over `model`; if `compiled`, small batches run as graphs that are compiled when first met, one for each
        size. On a CUDA device they can be captured then; see `capture`.

        Raises UnsupportedModelError if its layers cannot run on the ragged attention.
        """
        self.layers: list[LayerFacts] = probe_layers(model)
        self.captures: bool = compiled and model.device.type == "cuda"
        """Whether small steps are worth `capture`."""
        model.set_attn_implementation(BOUNDED_ATTENTION if self.captures else ATTENTION)
        self._number = next(_numbers)
        self._model = model
        self._graph = compile_forward(model) if compiled else None
        self._ahead: AheadForward | None = None
        self._captured: StepGraphs | None = None
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size: int = model.config.get_text_config().vocab_size
        has_kernel = runs_on(self.device)
        self._can_page = tuple(has_kernel and can_page(facts, self.dtype) for facts in self.layers)
        self._kernel: Kernel = varlen_attn
        self.kv_bytes_per_token: int = _num_bytes(self.layers, self.dtype)
        """What one cell takes in all layers together."""
        self._scratch_cell = 0
        self._block_cells = 1
        self._caches: list[Tensor] = []
        self._key_caches: tuple[Tensor, ...] = ()
        self._value_caches: tuple[Tensor, ...] = ()

    def allocate(self, num_blocks: int, block_cells: int) -> None:
        """Makes the caches: `num_blocks` blocks of `block_cells` cells, and one more for what padding writes.

        Layers of one shape share one tensor, so that moving a cell is one operation for all. Cells start as zeros: a
        masked cell contributes 0 times its value, which must be finite.

        Raises UnsupportedModelError if the device has no room for them.
        """
        num_cells = (num_blocks + 1) * block_cells
        self._scratch_cell = num_cells - 1
        self._block_cells = block_cells
        planes: dict[tuple[int, int], list[tuple[int, bool]]] = {}
        for layer, facts in enumerate(self.layers):
            planes.setdefault((facts.num_kv_heads, facts.key_size), []).append((layer, True))
            planes.setdefault((facts.num_kv_heads, facts.value_size), []).append((layer, False))
        caches: dict[tuple[int, bool], Tensor] = {}
        for (num_kv_heads, size), members in planes.items():
            shape = (len(members), num_cells, num_kv_heads, size)
            try:
                storage = torch.zeros(shape, dtype=self.dtype, device=self.device)
            except RuntimeError as error:
                gigabytes = math.prod(shape) * self.dtype.itemsize / 1e9
                raise UnsupportedModelError(
                    f"{self.device} has no room for {gigabytes:.1f} GB of keys and values beside the model; "
                    "lower --kv-memory, --max-sessions or --max-context"
                ) from error
            self._caches.append(storage)
            caches.update(zip(members, storage.unbind(0), strict=True))
        layers = range(len(self.layers))
        self._key_caches = tuple(caches[layer, True] for layer in layers)
        self._value_caches = tuple(caches[layer, False] for layer in layers)

    def move(self, moves: list[Move]) -> None:
        """Copies cells (indices into the caches) in all layers, every source read before any destination is written."""
        if not moves:
            return
        sources, destinations = send(list(zip(*moves, strict=True)), self.device)
        for storage in self._caches:
            storage.index_copy_(1, destinations, storage.index_select(1, sources))

    def adopt(self, package: Path) -> None:
        """From now on runs a package of this model that `compile_ahead` wrote.

        `allocate` has been called, and the native operator is loaded.
        """
        windows = [facts.window for facts in self.layers]
        native.set_caches(self._number, self._key_caches, self._value_caches, windows, self._block_cells)
        weakref.finalize(self, native.forget_caches, self._number)
        self._ahead = AheadForward(package, self._number, self._scratch_cell)

    @torch.inference_mode()
    def capture(self, num_tokens: int) -> None:
        """From now on replays CUDA graphs for batches of that size; a power of two up to COMPILED_TOKENS_MAX.

        `allocate` has been called: the caches stay where they are. The longest contexts come first, and the shorter
        ones use their memory. Raises RuntimeError if the model cannot be captured.
        """
        if self._captured is None:
            windows = [facts.window for facts in self.layers]
            buffer = StaticBuffer(self._key_caches, self._value_caches, windows, self._block_cells)
            self._captured = StepGraphs(self._forward_static, buffer, CudaRecorder(self.device))
        for num_columns in reversed(column_sizes(self._scratch_cell)):
            self._captured.capture(StaticSize(num_tokens, num_columns))

    def run_eagerly(self) -> None:
        """From now on neither compiles nor replays."""
        self.captures = False
        self._graph = self._captured = None
        self._model.set_attn_implementation(ATTENTION)

    def forward(self, batch: PackedBatch, num_tokens: int) -> Tensor:
        """Feeds the batch, padded to at least `num_tokens` tokens.

        Returns the logits of its wanted rows, [R, vocab_size], on the model's device.
        """
        if self._ahead is not None:
            return self._ahead(batch, num_tokens)
        if self._captured is not None and (logits := self._captured(batch, num_tokens)) is not None:
            return logits
        num_rows = len(batch.rows)
        size = rounded(max(num_tokens, len(batch.token_ids)))
        graph = self._graph if size <= COMPILED_TOKENS_MAX else None
        rows = batch.rows + [0] * (rounded(num_rows) - num_rows)
        if graph is not None:
            size = bucket(size)
            rows += [0] * (size - len(rows))  # logits for every token: then the size alone tells the shape
        batch.pad(size, self._scratch_cell)
        token_ids, positions, rows, write_cells, blocks = send(
            (batch.token_ids, batch.positions, rows, batch.write_cells, batch.blocks), self.device
        )
        with self._kernels(), stepping(self._number, self._attending(batch, write_cells, blocks)):
            output = (self._model if graph is None else graph)(
                input_ids=token_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=rows,
                ragged_batch=self._number,
            )
        return output.logits[0, :num_rows]

    def _attending(self, batch: PackedBatch, write_cells: Tensor, blocks: Tensor) -> Attending:
        """What the layers attend over: by blocks those that can, and session by session the others."""
        last_position = max(batch.positions)
        pages = tuple(
            can_page and (facts.window is None or facts.window > last_position)
            for can_page, facts in zip(self._can_page, self.layers, strict=True)
        )
        windows = {facts.window for page, facts in zip(pages, self.layers, strict=True) if not page}
        spans, visible = spans_and_masks(batch, tuple(windows)) if windows else (_NO_SPANS, {})
        masks = {window: self._additive(queued(part, self.device)) for window, part in visible.items()}
        ragged = RaggedBatch(
            key_caches=self._key_caches,
            value_caches=self._value_caches,
            masks=tuple(masks.get(facts.window) for facts in self.layers),
            write_cells=write_cells,
            spans=spans,
            blocks=blocks,
            block_cells=self._block_cells,
        )
        return PagedStep(load(batch, self.device), ragged, pages, self._kernel) if any(pages) else ragged

    def _forward_static(self, batch: StaticBatch) -> Tensor:
        """The logits of all rows of a static batch, [N, vocab_size]."""
        with self._kernels(), stepping(self._number, batch):
            output = (self._model if self._graph is None else self._graph)(
                input_ids=batch.token_ids,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=batch.rows,
                ragged_batch=self._number,
            )
        return output.logits[0]

    def _additive(self, visible: Tensor) -> Tensor:
        """The mask that attention adds to its scores: 0 where `visible`, elsewhere -inf."""
        return torch.zeros(visible.shape, dtype=self.dtype, device=self.device).masked_fill_(~visible, float("-inf"))

    def _kernels(self) -> AbstractContextManager[object]:
        """Which attention kernels may run on this device."""
        return sdpa_kernel(_CUDA_KERNELS) if self.device.type == "cuda" else nullcontext()
