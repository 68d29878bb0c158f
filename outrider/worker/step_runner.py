"""What runs a scheduler's steps on a device: engine, sampler, and a mean of how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import structlog
import torch

from outrider.core.estimate.context_cost import ContextTime
from outrider.core.protocol.messages import WorkerLoad
from outrider.core.schedule.admission import Admission
from outrider.core.schedule.draft_run import Level
from outrider.engine.engine import Engine, OutOfStepError, StepOutput, Ticket
from outrider.engine.jobs import Job
from outrider.engine.sample.sampler import Sampler
from outrider.engine.step_times import measure, measure_in_context
from outrider.worker.engine_memory import EngineMemory
from outrider.worker.step_times import StepTimes

_SMOOTHING = 0.1
"""Weight of the newest step in the mean duration that a worker reports: the last ten or so decide."""

Outcome = TypeVar("Outcome")


class StepRunner:
    """Engine and sampler of one worker. Device thread only, but for `load`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sampler = Sampler(engine.vocab_size, engine.max_sessions, engine.device, tables=engine.tables)
        self.memory = EngineMemory(engine, self.sampler)
        self.on_change: Callable[[], None] = lambda: None
        """Called when `load` may have changed."""
        self.times = StepTimes()
        self._step_seconds = 0.0
        self._path = ""
        self._observed = 0.0
        """When `observe` was last called."""
        self._log = structlog.get_logger()

    def launch(self, jobs: Sequence[Job], max_line_tokens: int) -> Ticket:
        """See `Engine.launch`."""
        return self.engine.launch(jobs, max_line_tokens)

    def collect(self, ticket: Ticket) -> StepOutput:
        """See `Engine.collect`. It is the step that is observed next."""
        self._path = ticket.path
        return self.engine.collect(ticket)

    def step_times(self) -> tuple[list[tuple[int, float]], list[ContextTime]]:
        """Numbers of tokens and seconds, and on a GPU steps over few and over many cells. On a CPU a long context takes
        too long to read for a start, and a step's products outweigh it."""
        engine = self.engine
        return measure(engine), [] if engine.device.type == "cpu" else measure_in_context(engine)

    def attempt(self, compute: Callable[[], Outcome], session_ids: Iterable[str]) -> Outcome | None:
        """What `compute` returns, or None if it fails; then the log says so of a session that was alone.

        Raises torch.AcceleratorError and OutOfStepError: then the device, or the model, is beyond repair for this
        process.
        """
        try:
            return compute()
        except (torch.AcceleratorError, OutOfStepError):
            raise
        except Exception as error:
            first, *others = session_ids
            if not others:
                self._log.error("step failed", session=first, exc_info=error)
            return None

    @property
    def runs_levels(self) -> bool:
        """Whether the device can draft several levels by itself."""
        return self.engine.runs_levels

    def observe(self, started: float) -> None:
        """A step that began then, on the monotonic clock, is over. Time that it shared with the one before it is the
        other's."""
        now = time.monotonic()
        self._observe(now - max(started, self._observed))
        self._observed = now

    def observe_levels(self, started: float, levels: Sequence[Level], num_sessions: int) -> None:
        """Levels of so many sessions, of which the first began then, are over; each counts as a step."""
        self._path = self.engine.path
        self._observe(time.monotonic() - started, len(levels))

    def _observe(self, seconds: float, num_steps: int = 1) -> None:
        self.times.add(self._path, seconds, num_steps)
        weight = 1.0 - (1.0 - _SMOOTHING) ** num_steps if self._step_seconds else 1.0
        self._step_seconds += weight * (seconds / num_steps - self._step_seconds)
        self.on_change()

    def load(self, instance_id: str, admission: Admission[Any]) -> WorkerLoad:
        """How busy the worker is. Any thread: each number is right by itself, though a step may end between them."""
        blocks = self.engine.blocks
        seated, waiting = list(admission.seated), list(admission.waiting)
        prefilling = (each for each in seated if each.is_prefilling)
        return WorkerLoad(
            instance_id=instance_id,
            num_sessions=len(seated),
            num_queued=len(waiting),
            num_queued_tokens=sum(map(admission.num_uncomputed_tokens, (*prefilling, *waiting))),
            num_kv_tokens=blocks.num_blocks * blocks.block_cells,
            num_free_kv_tokens=blocks.num_available * blocks.block_cells,
            step_ms=self._step_seconds * 1000.0,
            num_prompt_tokens=blocks.num_tokens_asked,
            num_cached_prompt_tokens=blocks.num_tokens_found,
        )
