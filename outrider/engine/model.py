"""A decoder model with its KV cache: packed batches in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.refusal import first_line
from outrider.engine import native
from outrider.engine.attention.interface import AttentionBackend, ModelFacts
from outrider.engine.attention.native import NativeAttention
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.batch import PackedBatch, as_it_is, rounded
from outrider.engine.compile.ahead import INVARIANT
from outrider.engine.compile.choice import ChoiceInGraph
from outrider.engine.compile.decoder import Decoder
from outrider.engine.compile.device_levels import DeviceLevels
from outrider.engine.compile.export import export
from outrider.engine.compile.forward import EagerForward, Forward, GraphForward
from outrider.engine.compile.fusion import fused, fusion_problem
from outrider.engine.compile.graphs import CudaRecorder, StepGraphs
from outrider.engine.compile.just_in_time import CompiledForward, compile_decoder
from outrider.engine.compile.levels import DraftLevels, Levels
from outrider.engine.kv_cache.slots import Move
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.sample import fused as one_pass
from outrider.engine.sampling_tables import SamplingTables


class RaggedModel:
    """Runs packed batches. Built once at start; used by the device thread alone."""

    def __init__(
        self,
        model: PreTrainedModel,
        facts: ModelFacts,
        attention: type[AttentionBackend],
        num_blocks: int,
        tables: SamplingTables,
        *,
        compiled: bool,
        captured: bool,
    ) -> None:
        """Takes over `model`, which is what `facts` say, over a KV cache of `num_blocks` blocks. What is captured
        chooses tokens by `tables`.

        Where layers attend by `tree`, small batches can be captured, if `captured`; see `capture`. If `compiled`, the
        smallest run as graphs that are compiled when first met, one for each size, and are captured so. Others run
        eagerly.

        Raises UnsupportedModelError if the device has no room for the KV cache.
        """
        self.facts = facts
        self.vocab_size: int = model.config.get_text_config().vocab_size
        self.cache = KVCache(facts.layers, num_blocks, attention.block_size(facts), facts.cell_dtype, facts.device)
        self._model = model
        self.forwards: list[Forward] = []
        """In the order in which they are asked. The last one takes every batch."""
        self.batch_invariant = False
        """Whether it is known that a token's logits have the same bits whatever shares its step."""
        self.path = ""
        """The way that the latest batch went; see `Forward.path`. +choice follows if it chose tokens. Empty before the
        first batch."""
        self.best: Tensor | None = None
        """What the latest batch's pass chose, if it was to and could; see `StepGraphs.best`."""
        self._tables = tables
        self._drafts = False
        self.levels: Levels | None = None
        """Runs several levels of a draft in one call, if this model can."""
        self.no_levels = ""
        """Why levels of a draft are not captured, in words; empty if they are, or need not be."""
        self._graphs: StepGraphs | None = None
        self._captured = captured
        self._device_levels: DeviceLevels | None = None
        backend = attention(facts, self.cache)
        self.not_fused = fusion_problem(Decoder(model, backend, self.cache.scratch_cell), facts)
        """Why its layers do not run fused, in words; empty if they do."""
        self._use(backend, compiled=compiled)

    def _use(self, attention: AttentionBackend, *, compiled: bool) -> None:
        self.attention = attention
        """How the layers attend at present."""
        decoder = Decoder(self._model, attention, self.cache.scratch_cell)
        self.decoder = decoder if self.not_fused else fused(decoder)
        self.forwards = [EagerForward(self.decoder)]
        self._graphs = self._device_levels = self.levels = None
        if not isinstance(attention, TreeAttention):
            return
        small = self.decoder
        if compiled and self.not_fused:
            small = compile_decoder(decoder)
            self.forwards.insert(0, CompiledForward(small))
        if self._captured:
            choice = None if one_pass.problem(self.facts.device) else ChoiceInGraph(self._tables)
            self._graphs = StepGraphs(small.run_static, attention, CudaRecorder(self.facts.device), choice)
            self._prepare_levels()

    def draft_levels(self) -> None:
        """From now on captures whole levels of a draft besides steps, where these choose tokens."""
        self._drafts = True
        self._prepare_levels()

    def _prepare_levels(self) -> None:
        graphs, attention = self._graphs, self.attention
        if not self._drafts or graphs is None or graphs.choice is None:
            return
        if isinstance(attention, TreeAttention) and attention.sees_trees:
            self._device_levels = DeviceLevels(
                graphs.forward, attention, self.cache, graphs.record, graphs.choice, len(self._tables.seeds)
            )

    @property
    def captures(self) -> bool:
        """Whether small steps are worth `capture`."""
        return self._graphs is not None

    @property
    def chooses(self) -> bool:
        """Whether what is captured chooses tokens."""
        return self._graphs is not None and self._graphs in self.forwards and self._graphs.choice is not None

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of tokens that are worth capturing, in the order in which to do it."""
        return () if self._graphs is None else self._graphs.buckets

    def export(self) -> None:
        """From now on runs the model's graph, operator by operator. The native operators are loaded.

        Raises UnsupportedModelError if the model cannot be exported; then it runs as before, but with native layers.
        """
        try:
            exported = export(self._model)
        except UnsupportedModelError:
            self._use(self._native_attention(), compiled=False)
            raise
        module = exported.program.module(check_guards=False)
        invariant = not exported.variant_operators
        self._run_graph(lambda inputs: [module(*inputs)], "native", None, batch_invariant=invariant)

    def adopt(self, package: Path) -> None:
        """From now on runs a package of this model that `compile_ahead` wrote. The native operators are loaded.

        Raises CannotCompileError if it cannot be loaded; then it runs as before.
        """
        compiled = native.Package(package)
        self._run_graph(compiled.run, "compiled", compiled.number, batch_invariant=INVARIANT in compiled.metadata)

    def _run_graph(
        self, run: Callable[[list[Tensor]], list[Tensor]], path: str, package: int | None, *, batch_invariant: bool
    ) -> None:
        attention = self.attention = self._native_attention()
        # Operators of a library are among those of which it is not known that a token's result is its own.
        size_of = as_it_is if batch_invariant else rounded
        self.forwards = [GraphForward(run, attention, self.cache.scratch_cell, path, size_of)]
        self.levels = DraftLevels(run, package, attention, self.cache, path, size_of)
        self.batch_invariant = batch_invariant

    def _native_attention(self) -> NativeAttention:
        attention = self.attention
        return attention if isinstance(attention, NativeAttention) else NativeAttention(self.facts, self.cache)

    @torch.inference_mode()
    def capture(self, num_tokens: int) -> None:
        """From now on replays CUDA graphs for batches of that size, one of `sizes`.

        Raises RuntimeError if the model cannot be captured. Levels of a draft are not worth that: where they cannot be
        captured, they are drafted step by step.
        """
        assert self._graphs is not None
        self._graphs.capture(num_tokens)
        if self._device_levels is not None and num_tokens in self._device_levels.sizes:
            try:
                self._device_levels.capture(num_tokens)
                self.levels = self._device_levels
            except Exception as error:  # compilers, drivers and kernels raise whatever they meet
                self.no_levels = f"they cannot be captured here ({type(error).__name__}: {first_line(error)})"
                self._device_levels = self.levels = None
        if self._graphs not in self.forwards:
            self.forwards.insert(0, self._graphs)

    @property
    def forward_pass(self) -> str:
        """The paths in use, in the order in which a batch is offered to them."""
        return ", ".join(forward.path for forward in self.forwards)

    def run_uncompiled(self) -> None:
        """From now on compiles nothing. Small steps can still be captured. Keys and values stay."""
        self._use(self.attention, compiled=False)

    def run_eagerly(self) -> None:
        """From now on neither compiles nor replays. Keys and values stay."""
        self._captured = False
        self._use(self.attention, compiled=False)

    def run(self, moves: Sequence[Move], batch: PackedBatch) -> Tensor:
        """Moves cells (see `KVCache.move`), then feeds the batch, which may be empty. Returns the logits of its wanted
        rows, [R, vocab_size], on the model's device."""
        if batch.token_ids and len(moves) <= self.attention.moves_max:
            batch.moves = moves
        else:
            self.cache.move(moves)
        if not batch.token_ids:
            self.best = None
            return torch.empty(0, self.vocab_size, dtype=self.facts.dtype, device=self.facts.device)
        return self.forward(batch)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Feeds the batch. Returns the logits of its wanted rows, [R, vocab_size], on the model's device."""
        for forward in self.forwards:
            if (logits := forward.run(batch)) is not None:
                self.best = forward.best if isinstance(forward, StepGraphs) else None
                self.path = forward.path if self.best is None else f"{forward.path}+choice"
                return logits
        raise AssertionError("no forward pass takes this batch")
