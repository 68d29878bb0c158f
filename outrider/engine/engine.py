"""The engine: jobs of many sessions in, logits out, one ragged forward pass per step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from transformers import PreTrainedModel

from outrider.core.errors import UnsupportedModelError
from outrider.engine.batch import pack
from outrider.engine.compiling import COMPILED_SIZES
from outrider.engine.jobs import Job, plan, settle
from outrider.engine.model import RaggedModel
from outrider.engine.slots import Move, Slot, SlotPool

STEP_TOKENS_MAX = 512
"""Most line tokens fed in one step over all jobs. A longer prompt is fed in chunks, so that others get their turn."""


MEASURED_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of tokens whose steps are timed at start: decoding, and trees as one session's rounds verify them."""

MEASURE_SECONDS_MAX = 10.0
"""Longest that the timing goes on: larger sizes of a slow model are left to be learned at work."""

_MEASUREMENTS = 3
"""Timed steps of each size; the shortest counts, as whatever disturbs a step makes it longer."""


class StepOutput(NamedTuple):
    """Logits of one step."""

    logits: Tensor
    """[R, V], the wanted rows of all complete jobs, in the order of the jobs."""
    num_rows: list[int | None]
    """For each job how many of the rows are its own, or None if its line is not fed to its end yet: run it again."""


class Engine:
    """Slots over one model. Not thread-safe: the device thread alone calls it."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_sessions: int,
        max_context: int,
        compiled: bool = False,
        pad_tokens: int = 0,
    ) -> None:
        """Room for `max_sessions` lines of up to `max_context` tokens; see `RaggedModel` for `compiled`.

        Steps over fewer than `pad_tokens` tokens are padded to that many, so that matrix products round alike in all
        of them.

        Raises UnsupportedModelError if the model's layers cannot run on the ragged attention.
        """
        self._model = RaggedModel(model, compiled=compiled)
        self._slots = SlotPool(max_sessions, max_context)
        self._model.allocate(self._slots.num_cells, self._slots.scratch_cell)
        self.device: torch.device = self._model.device
        self.dtype: torch.dtype = self._model.dtype
        self.vocab_size = self._model.vocab_size
        self.max_sessions = max_sessions
        self.max_context = max_context
        self._pad_tokens = pad_tokens

    @property
    def num_free_slots(self) -> int:
        """Slots that no session holds."""
        return self._slots.num_free

    def acquire(self) -> Slot:
        """A slot for a new session. Raises SlotsExhaustedError."""
        return self._slots.acquire()

    def release(self, slot: Slot) -> None:
        """Ends a session's hold on its slot."""
        self._slots.release(slot)

    def warm_up(self) -> Iterator[int]:
        """Runs, and so compiles, one batch of each compiled size; yields the size of each when it is done.

        On a CUDA device each is also captured, for all lengths of context that a step may then have. Raises
        UnsupportedModelError if the model cannot be compiled or captured.
        """
        for size in COMPILED_SIZES:
            try:
                if self._model.captures:
                    self._model.capture(size)
                else:
                    self._run_once(size)
            except (TorchDynamoException, InductorError) as error:
                raise UnsupportedModelError(
                    f"this model cannot be compiled ({type(error).__name__}); use --compile off"
                ) from error
            yield size

    def _run_once(self, num_tokens: int) -> None:
        slot = self.acquire()
        try:
            self.step([Job(slot, [0] * num_tokens)])
        finally:
            self.release(slot)

    def adopt(self, package: Path) -> None:
        """From now on runs a package that `outrider.engine.ahead.compile_ahead` wrote. Keys and values stay."""
        self._model.adopt(package)

    def measure(self) -> list[tuple[int, float]]:
        """Numbers of tokens, and how many seconds a step over so many takes; none if all slots are taken.

        The first step of each size also makes the kernels ready for that size; it does not count.
        """
        if not self.num_free_slots:
            return []
        slot = self.acquire()
        found: list[tuple[int, float]] = []
        first = time.monotonic()
        try:
            for size in MEASURED_SIZES:
                if size > self.max_context or time.monotonic() - first > MEASURE_SECONDS_MAX:
                    break
                durations: list[float] = []
                for _ in range(1 + _MEASUREMENTS):
                    slot.clear()
                    started = time.monotonic()
                    self.step([Job(slot, [0] * size)]).logits.sum().item()
                    durations.append(time.monotonic() - started)
                found.append((size, min(durations[1:])))
        finally:
            self.release(slot)
        return found

    @torch.inference_mode()
    def step(self, jobs: Sequence[Job]) -> StepOutput:
        """One forward pass for all `jobs`, one job per slot.

        Short feeds go first, so a long prompt never keeps a decoding session out of a step. If the pass raises, every
        slot of the step is cleared and the jobs may be run again.
        """
        try:
            return self._step(jobs)
        except BaseException:
            for job in jobs:
                job.slot.clear()
            raise

    def _step(self, jobs: Sequence[Job]) -> StepOutput:
        budget = STEP_TOKENS_MAX
        feeds = {}
        for index in sorted(range(len(jobs)), key=lambda index: len(jobs[index].line) - len(jobs[index].slot.trunk)):
            feeds[index] = plan(jobs[index], max(budget, 1))
            budget -= feeds[index].num_trunk
        ordered = [feeds[index] for index in range(len(jobs))]
        self._model.move(
            [
                Move(feed.job.slot.first_cell + move.source, feed.job.slot.first_cell + move.destination)
                for feed in ordered
                for move in feed.moves
            ]
        )
        logits = self._model.forward(pack(ordered), self._pad_tokens)
        for feed in ordered:
            settle(feed)
        return StepOutput(logits, [len(feed.rows) if feed.complete else None for feed in ordered])
