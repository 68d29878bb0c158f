"""When a worker computed, and how much at once: its forward passes and its whole steps."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple, TypeVar

from bench.stack.intervals import Span

LOG_MAX = 100_000
"""Spans that are kept until they are taken: far more than one answer has."""

Entry = TypeVar("Entry")


class StepSize(NamedTuple):
    """How much one forward pass computed."""

    num_sessions: int
    num_rows: int
    """Tokens whose logits came out."""
    num_padding_tokens: int
    """Tokens that were fed to make sessions alike; see `padding.py`."""


class StepLog:
    """Written on the device thread, taken on the event loop. Times are nanoseconds of the monotonic clock."""

    def __init__(self) -> None:
        self._passes: deque[Span] = deque(maxlen=LOG_MAX)
        self._sizes: deque[StepSize] = deque(maxlen=LOG_MAX)
        self._steps: deque[Span] = deque(maxlen=LOG_MAX)

    def add_pass(self, started: int, size: StepSize, ended: int | None = None) -> None:
        """A forward pass that began then is over, by default since now."""
        self._sizes.append(size)
        self._passes.append((started, time.monotonic_ns() if ended is None else ended))

    def add_step(self, started: int) -> None:
        """A step that began then, and had a forward pass, is over."""
        self._steps.append((started, time.monotonic_ns()))

    def take(self) -> dict[str, list[Any]]:
        """What was logged since the last time: spans of `passes` and `steps`, and for each pass its StepSize in
        `sizes`."""
        return {"passes": _drain(self._passes), "sizes": _drain(self._sizes), "steps": _drain(self._steps)}


def _drain(entries: deque[Entry]) -> list[Entry]:
    return [entries.popleft() for _ in range(len(entries))]
