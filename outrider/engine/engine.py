"""The engine: jobs of many sessions in, logits out, one ragged forward pass per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.refusal import first_line
from outrider.engine.attention.interface import model_facts
from outrider.engine.attention.registry import AUTO, select
from outrider.engine.batch import PackedBatch, pack
from outrider.engine.compile.levels import Interruption, LevelsJob, Loop
from outrider.engine.jobs import Feed, Job, plan, settle
from outrider.engine.kv_cache.blocks import BlockKey, BlockPool
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX, Move, Slot, SlotPool
from outrider.engine.model import RaggedModel
from outrider.engine.sampling_tables import SamplingTables
from outrider.engine.staging import Event
from outrider.engine.transfer import mark

STEP_TOKENS_MAX = 512
"""Most line tokens fed in one step over all jobs. A longer prompt is fed in chunks, so that others get their turn."""


_ENTERED = nullcontext()


def _inference() -> AbstractContextManager[object]:
    """Inference mode, which a device thread has entered once for all that it does."""
    return _ENTERED if torch.is_inference_mode_enabled() else torch.inference_mode()


class OutOfStepError(Exception):
    """A step failed on some of a model's ranks: they hold different keys and values now, and cannot go on."""


class StepOutput(NamedTuple):
    """Logits of one step."""

    logits: Tensor
    """[R, V], the wanted rows of all complete jobs, in the order of the jobs."""
    num_rows: list[int | None]
    """For each job how many of the rows are its own, or None if its line is not fed to its end yet: run it again. It
    may have been fed nothing: the step had no more tokens, or another job of it computes what both have in common."""
    best: Tensor | None = None
    """[2, R, width] float64: token ids of each row and perturbed scores, best first; see `best_tokens` in
    `outrider/engine/gpu/choice.py`. None if the step could not choose, or was not to do so for each of its rows."""


class Ticket(NamedTuple):
    """A step that was launched, and that its device may still compute."""

    output: StepOutput
    """What `Engine.collect` returns. Until then its logits are for what is queued behind them."""
    path: str
    """Which way it went through the model; see `Engine.path`."""
    computed: Event | None
    """Passes when the device has computed it; None where it has by now."""


class Engine:
    """Slots over one model. Not thread-safe: the device thread alone calls it."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_sessions: int,
        max_context: int,
        kv_tokens: int | None = None,
        compiled: bool = False,
        captured: bool = False,
        pad_tokens: int = 0,
        attention: str = AUTO,
        kv_cache_dtype: torch.dtype | None = None,
        announce: Callable[[Sequence[Move], PackedBatch], None] | None = None,
    ) -> None:
        """Slots for `max_sessions` lines of up to `max_context` tokens; see `RaggedModel` for `compiled`.

        If `compiled` or `captured`, small steps are replayed once they are warmed up, where layers attend by `tree`.

        The KV cache has room for `kv_tokens` tokens, in whole blocks; if None, for all sessions at their longest. Steps
        over fewer than `pad_tokens` tokens are padded to that many, so that matrix products round alike in all of them.
        Layers attend by the backend called `attention`, over cells of `kv_cache_dtype`, or if None of the model's type.
        Where the model is divided over several ranks, `announce` tells the others each step before it is taken, and
        they `follow`.

        Raises UnsupportedModelError if that backend or the attention interface cannot serve the model's layers, or if
        `kv_tokens` is too little for one session.
        """
        facts = model_facts(model)._replace(kv_cache_dtype=kv_cache_dtype)
        backend = select(attention, facts)
        block_cells = backend.block_size(facts)
        session_blocks = -(-(max_context + TREE_CELLS_MAX) // block_cells)
        num_blocks = max_sessions * session_blocks if kv_tokens is None else kv_tokens // block_cells
        if num_blocks < session_blocks:
            raise UnsupportedModelError(
                f"keys and values of {num_blocks * block_cells} tokens find room, and one session may need those of "
                f"{session_blocks * block_cells}: {max_context} of context and {TREE_CELLS_MAX} of its tree, "
                f"{facts.kv_bytes_per_token} bytes each; raise --kv-memory or lower --max-context"
            )
        self.tables = SamplingTables.of(max_sessions, facts.device)
        """By which captured steps choose tokens: whoever samples writes to them."""
        captured = compiled or captured
        self._model = RaggedModel(model, facts, backend, num_blocks, self.tables, compiled=compiled, captured=captured)
        self.blocks = BlockPool(num_blocks, block_cells)
        """The memory of the KV cache."""
        self._slots = SlotPool(max_sessions, max_context, self.blocks)
        self.device: torch.device = facts.device
        self.dtype: torch.dtype = facts.dtype
        self.vocab_size = self._model.vocab_size
        self.max_sessions = max_sessions
        self.max_context = max_context
        self.kv_bytes_per_token = facts.kv_bytes_per_token
        self._pad_tokens = pad_tokens
        self._announce = announce

    @property
    def model(self) -> RaggedModel:
        """What computes its steps."""
        return self._model

    @property
    def attention(self) -> str:
        """The name of the attention backend that is in use."""
        return self._model.attention.name

    @property
    def path(self) -> str:
        """Which way the latest step went through the model: graph, compiled, native or eager;
        graph+choice if it chose tokens on it."""
        return self._model.path

    @property
    def forward_pass(self) -> str:
        """The paths that are in use, in the order in which a step is offered to them."""
        return self._model.forward_pass

    @property
    def captures(self) -> bool:
        """Whether `warm_up` captures small steps."""
        return self._model.captures

    @property
    def chooses(self) -> bool:
        """Whether steps that are captured choose tokens."""
        return self._model.chooses

    @property
    def not_fused(self) -> str:
        """Why the layers do not run on fused kernels, in words; empty if they do."""
        return self._model.not_fused

    @property
    def no_levels(self) -> str:
        """Why levels of a draft are not captured, in words; empty if they are, or need not be."""
        return self._model.no_levels

    @property
    def num_free_slots(self) -> int:
        """Slots that no session holds."""
        return self._slots.num_free

    def acquire(self, *, shares: bool = True, cache_salt: str = "") -> Slot:
        """A slot for a new session; see `SlotPool.acquire`. Raises SlotsExhaustedError."""
        return self._slots.acquire(shares=shares, cache_salt=cache_salt)

    def release(self, slot: Slot) -> None:
        """Ends a session's hold on its slot and its blocks."""
        self._slots.release(slot)

    def forget(self, slot: Slot) -> None:
        """Takes a session's blocks from it, so that others can go on.

        Its slot stays its own, and its next job feeds the line anew, but for what prefix caching finds.
        """
        slot.clear()

    def num_missing_blocks(self, job: Job) -> int:
        """How many of the available blocks running `job` to its end takes at most, in one step or in many.

        The jobs of a step may run if their sum is at most `blocks.num_available`. Ask again when a slot was released or
        made to forget: what a job would have shared with it, it has to take now.
        """
        return job.slot.num_missing_blocks(job.line, len(job.token_ids))

    def warm_up(self) -> Iterator[int]:
        """Captures the step of each token bucket, for all lengths of context that it may have; yields its size when it
        is done. Nothing, where nothing is to be captured.

        Raises UnsupportedModelError if the model cannot be compiled or captured; after `run_eagerly` it runs
        nevertheless.
        """
        for size in self._model.sizes:
            try:
                self._model.capture(size)
            except RuntimeError as error:  # of compilers, of CUDA and of its allocator
                raise UnsupportedModelError(
                    f"this model cannot be compiled ({type(error).__name__}: {first_line(error)}); use --compile off"
                ) from error
            yield size

    def draft_levels(self) -> None:
        """From the next `warm_up` on replays whole levels of a draft, too, where steps choose tokens."""
        self._model.draft_levels()

    def run_uncompiled(self) -> None:
        """From now on compiles nothing, and captures nothing before the next `warm_up`. Keys and values stay."""
        self._model.run_uncompiled()

    def run_eagerly(self) -> None:
        """From now on runs as if it had not been told to compile. Keys and values stay."""
        self._model.run_eagerly()

    @property
    def batch_invariant(self) -> bool:
        """Whether it is known that a token's logits have the same bits whatever shares its step."""
        return self._model.batch_invariant

    def export(self) -> None:
        """From now on runs one graph of native operators, operator by operator. Keys and values stay.

        The native operators are loaded. Raises UnsupportedModelError if the model cannot be exported; it runs
        nevertheless.
        """
        self._model.export()

    def adopt(self, package: Path) -> None:
        """From now on runs a package that `outrider.engine.compile.ahead.compile_ahead` wrote. Keys and values stay.

        Raises CannotCompileError if it cannot be loaded; then it runs as before.
        """
        self._model.adopt(package)

    def step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        """One forward pass for `jobs`, one job per slot, over at most `max_line_tokens` tokens of their lines.

        Line tokens are granted in the order of the jobs: decoding sessions should stand before long prompts. If the
        pass raises, every slot of the step is cleared and the jobs may be run again. It raises RuntimeError if the
        blocks run out; see `num_missing_blocks`. It raises OutOfStepError, after which nothing may be run, if the pass
        fails on a model of several ranks.
        """
        try:
            with _inference():
                return self._step(jobs, max_line_tokens)
        except BaseException:
            for job in jobs:
                job.slot.clear()
            raise

    @property
    def overlaps(self) -> bool:
        """Whether `launch` returns while the device computes, so that the host can go on meanwhile."""
        return self.device.type == "cuda"

    def launch(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> Ticket:
        """Stages and queues a `step`, and waits for nothing that a device computes.

        From now on the slots hold what it feeds, for whatever is launched later: that is queued behind it.
        """
        output = self.step(jobs, max_line_tokens)
        return Ticket(output, self.path, mark(self.device))

    def collect(self, ticket: Ticket) -> StepOutput:
        """What came out of a step, as soon as that is computed. Raises torch.AcceleratorError if the device failed."""
        if ticket.computed is not None:
            ticket.computed.synchronize()
        return ticket.output

    @property
    def runs_levels(self) -> bool:
        """Whether it has a `level_loop`."""
        return self._model.levels is not None

    @property
    def expands_lines(self) -> bool:
        """Whether that can begin at the end of a line."""
        return self._model.levels is not None and self._model.levels.expands_lines

    @contextmanager
    def level_loop(
        self,
        jobs: Sequence[LevelsJob],
        tables: SamplingTables,
        level_seconds: Sequence[float],
        interruption: Interruption,
    ) -> Iterator[Loop | None]:
        """A loop that drafts several levels in a row; see `Levels.begin`. If the block raises, the slots of all jobs
        are cleared."""
        levels = self._model.levels
        assert levels is not None
        try:
            with _inference():
                self._model.cache.move(
                    [Move(*job.slot.places(move)) for job in jobs for move in job.slot.align(job.line)]
                )
                loop = levels.begin(jobs, tables, level_seconds, interruption, self._pad_tokens)
                if loop is not None:
                    self._model.path = levels.path
                yield loop
            if loop is not None:
                loop.end()
        except BaseException:
            for job in jobs:
                job.slot.clear()
            raise

    def _step(self, jobs: Sequence[Job], max_line_tokens: int) -> StepOutput:
        feeds: list[Feed] = []
        computing: set[BlockKey] = set()
        for job in jobs:
            feeds.append(plan(job, max(max_line_tokens, 0), computing))
            max_line_tokens -= feeds[-1].num_prefix
        moves = [Move(*feed.job.slot.places(move)) for feed in feeds for move in feed.moves]
        logits = self._run(moves, pack(feeds, self._pad_tokens))
        for feed in feeds:
            settle(feed)
        num_rows = [len(feed.rows) if feed.complete else None for feed in feeds]
        return StepOutput(logits, num_rows, self._model.best)

    def _run(self, moves: Sequence[Move], batch: PackedBatch) -> Tensor:
        if self._announce is None:
            return self._model.run(moves, batch)
        try:
            self._announce(moves, batch)
            return self._model.run(moves, batch)
        except Exception as error:
            raise OutOfStepError("a rank of the model failed in a step, or is lost") from error

    @torch.inference_mode()
    def follow(self, steps: Iterable[tuple[Sequence[Move], PackedBatch]]) -> None:
        """Takes the steps that another rank's engine announces, over this rank's part of the model."""
        for moves, batch in steps:
            self._model.run(moves, batch)
