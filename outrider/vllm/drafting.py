"""The drafting of all lines of one vLLM engine, step by step, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from coordinator.drafter_relay import DrafterLinks
from outrider.vllm.drafted_line import DraftedLine
from outrider.vllm.limits import Limits

IDLE_SECONDS = 30.0
"""With no step for so long vLLM has nothing to do, and all lines are given up: a step, with a long prompt in it, takes
less."""


class RowStep(NamedTuple):
    """What a step means for one row's line."""

    number: int
    """Which line it is."""
    opening: Sequence[int] | None
    """The whole line, if it is new."""
    token_ids: Sequence[int]
    """What the step decided."""


class Drafting:
    """Owns the lines. All but `closed` belongs to the event loop."""

    def __init__(self, links: DrafterLinks, limits: Limits, keep_seconds: float) -> None:
        """A line that steps leave out for `keep_seconds` is given up."""
        self.closed: deque[int] = deque()
        """Numbers of lines that were given up since they were taken out here, by whichever thread."""
        self._links = links
        self._limits = limits
        self._keep_seconds = keep_seconds
        self._lines: dict[int, DraftedLine] = {}
        self._has_news = asyncio.Event()
        self._idle: asyncio.TimerHandle | None = None
        self._closings: set[asyncio.Task[None]] = set()

    async def step(self, rows: Sequence[RowStep], step_ms: float, wait_seconds: float) -> list[list[int]]:
        """A step that took `step_ms` has ended: returns a chain for each row, maybe empty.

        Waits for at most `wait_seconds`, and only while nothing is at hand for a line that had drafts before.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        known = [self._lines.get(row.number) for row in rows]
        for row, line in zip(rows, known, strict=True):
            if line is not None:
                line.seen_at = now
                line.decide(row.token_ids, step_ms)
        self._close(number for number, line in self._lines.items() if line.seen_at < now - self._keep_seconds)
        lines = [self._open(row, now) if line is None else line for row, line in zip(rows, known, strict=True)]
        self._watch_idleness(loop)
        drafted = [line for row, line in zip(rows, lines, strict=True) if line is not None and row.token_ids]
        await self._wait(drafted, wait_seconds)
        return [
            line.chain() if line is not None and row.token_ids else [] for row, line in zip(rows, lines, strict=True)
        ]

    async def close(self) -> None:
        """Gives up all lines."""
        if self._idle is not None:
            self._idle.cancel()
        self._close_all()
        await asyncio.gather(*self._closings)

    def _open(self, row: RowStep, now: float) -> DraftedLine | None:
        if row.opening is None:  # it was given up while the step was under way
            self.closed.append(row.number)
            return None
        line = DraftedLine(row.opening, self._links, self._limits, self._has_news.set)
        line.seen_at = now
        self._lines[row.number] = line
        return line

    async def _wait(self, lines: Sequence[DraftedLine], seconds: float) -> None:
        if seconds <= 0.0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(line.is_awaited for line in lines):
                    self._has_news.clear()
                    await self._has_news.wait()
        for line in lines:
            line.disappoint()

    def _watch_idleness(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = loop.call_later(IDLE_SECONDS, self._close_all)

    def _close_all(self) -> None:
        self._close(self._lines)

    def _close(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            closing = asyncio.get_running_loop().create_task(self._lines.pop(number).close())
            self._closings.add(closing)
            closing.add_done_callback(self._closings.discard)
            self.closed.append(number)
