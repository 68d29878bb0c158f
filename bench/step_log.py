"""When a worker computed: the spans of its forward passes and of its whole steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from bench.intervals import Span
from outrider.engine.device_thread import Worker
from outrider.engine.engine import Engine

LOG_MAX = 100_000
"""Spans that are kept until they are taken: far more than one answer has."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class StepLog:
    """Written on the device thread, taken on the event loop."""

    def __init__(self) -> None:
        self._passes: deque[Span] = deque(maxlen=LOG_MAX)
        self._steps: deque[Span] = deque(maxlen=LOG_MAX)
        self._num_passes = 0

    def watch(self, engine: Engine, worker: Worker) -> None:
        """Logs every forward pass of `engine`, and every step of `worker` that had one."""
        setattr(engine, "step", self._logging_passes(engine.step))  # noqa: B010
        setattr(worker, "step", self._logging_steps(worker.step))  # noqa: B010

    def take(self) -> dict[str, list[Span]]:
        """What was logged since the last time: `passes` and `steps`."""
        return {"passes": _drain(self._passes), "steps": _drain(self._steps)}

    def _logging_passes(self, call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(call)
        def logging(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            started = time.monotonic_ns()
            result = call(*args, **kwargs)
            self._passes.append((started, time.monotonic_ns()))
            self._num_passes += 1
            return result

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


def _drain(spans: deque[Span]) -> list[Span]:
    return [spans.popleft() for _ in range(len(spans))]
