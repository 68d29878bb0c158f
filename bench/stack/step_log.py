"""When a worker computed, and how much at once: its forward passes and its whole steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from bench.stack.intervals import Span
from outrider.engine.device_thread import Worker
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job

LOG_MAX = 100_000
"""Spans that are kept until they are taken: far more than one answer has."""

Entry = TypeVar("Entry")
Result = TypeVar("Result")
_EngineStep = Callable[[Sequence[Job], int], StepOutput]


class StepSize(NamedTuple):
    """How much one forward pass computed."""

    num_sessions: int
    num_rows: int
    """Tokens whose logits came out."""
    num_padding_tokens: int
    """Tokens that were fed to make sessions alike; see `padding.py`."""


class StepLog:
    """Written on the device thread, taken on the event loop."""

    def __init__(self) -> None:
        self._passes: deque[Span] = deque(maxlen=LOG_MAX)
        self._sizes: deque[StepSize] = deque(maxlen=LOG_MAX)
        self._steps: deque[Span] = deque(maxlen=LOG_MAX)
        self._num_passes = 0

    def watch(self, engine: Engine, worker: Worker, num_padding_tokens: Callable[[], int]) -> None:
        """Logs every forward pass of `engine`, and every step of `worker` that had one. `num_padding_tokens` tells of
        the last pass."""
        setattr(engine, "step", self._logging_passes(engine.step, num_padding_tokens))  # noqa: B010
        setattr(worker, "step", self._logging_steps(worker.step))  # noqa: B010

    def take(self) -> dict[str, list[Any]]:
        """What was logged since the last time: spans of `passes` and `steps`, and for each pass its StepSize in
        `sizes`."""
        return {"passes": _drain(self._passes), "sizes": _drain(self._sizes), "steps": _drain(self._steps)}

    def _logging_passes(self, step: _EngineStep, num_padding_tokens: Callable[[], int]) -> _EngineStep:
        @wraps(step)
        def logging(jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
            started = time.monotonic_ns()
            output = step(jobs, max_line_tokens)
            ended = time.monotonic_ns()
            num_rows = sum(number or 0 for number in output.num_rows)
            self._sizes.append(StepSize(len(jobs), num_rows, num_padding_tokens()))
            self._passes.append((started, ended))
            self._num_passes += 1
            return output

        return logging

    def _logging_steps(self, call: Callable[[], Result]) -> Callable[[], Result]:
        @wraps(call)
        def logging() -> Result:
            num_before, started = self._num_passes, time.monotonic_ns()
            result = call()
            if self._num_passes > num_before:
                self._steps.append((started, time.monotonic_ns()))
            return result

        return logging


def _drain(entries: deque[Entry]) -> list[Entry]:
    return [entries.popleft() for _ in range(len(entries))]
