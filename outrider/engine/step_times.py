"""How long an engine's steps take, timed before it serves: over few tokens and many, below short lines and long."""

from __future__ import annotations

import time

from outrider.core.estimate.context_cost import ContextTime
from outrider.engine.engine import STEP_TOKENS_MAX, Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX, Slot

MEASURED_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of tokens whose steps are timed at start: decoding, and trees as one session's rounds verify them."""

TREE_SIZES = (1, 4, 9, 16, 32)
"""Numbers of tokens whose steps are timed below lines of different lengths."""

MEASURED_CONTEXTS = (256, 16384)
"""Tokens of those lines, or as many as there is room for: what is short, and what agents and documents send."""

MEASURE_SECONDS_MAX = 10.0
"""Longest that the timing goes on: larger sizes of a slow model are left to be learned at work."""

_MEASUREMENTS = 3
"""Timed steps of each size; the shortest counts, as whatever disturbs a step makes it longer."""


def measure(engine: Engine) -> list[tuple[int, float]]:
    """Numbers of tokens, and how many seconds a step over so many takes; none if all slots are taken, and no more
    than there are blocks left for.

    The first step of each size also makes the kernels ready for that size; it does not count.
    """
    if not engine.num_free_slots:
        return []
    slot = engine.acquire(shares=False)
    found: list[tuple[int, float]] = []
    size_max = min(engine.max_context, engine.blocks.num_available * engine.blocks.block_cells)
    first = time.monotonic()
    try:
        for size in MEASURED_SIZES:
            if size > size_max or time.monotonic() - first > MEASURE_SECONDS_MAX:
                break
            durations: list[float] = []
            for _ in range(1 + _MEASUREMENTS):
                slot.clear()
                started = time.monotonic()
                engine.step([Job(slot, [0] * size)]).logits.sum().item()
                durations.append(time.monotonic() - started)
            found.append((size, min(durations[1:])))
    finally:
        engine.release(slot)
    return found


def measure_in_context(engine: Engine) -> list[ContextTime]:
    """How long steps of some sizes take below a short line and below a long one; none where no slot is free.

    The line is read in chunks; the time that may take is bounded as in `measure`.
    """
    if not engine.num_free_slots:
        return []
    slot = engine.acquire(shares=False)
    found: list[ContextTime] = []
    room = min(engine.max_context, engine.blocks.num_available * engine.blocks.block_cells - TREE_CELLS_MAX)
    first = time.monotonic()
    try:
        line: list[int] = []
        for num_cells in MEASURED_CONTEXTS:
            while len(line) < min(num_cells, room) and time.monotonic() - first < MEASURE_SECONDS_MAX:
                line += [0] * min(STEP_TOKENS_MAX, min(num_cells, room) - len(line))
                engine.step([Job(slot, line)]).logits.sum().item()
            if line:
                found += [ContextTime(size, len(line), _time_below(engine, slot, line, size)) for size in TREE_SIZES]
    finally:
        engine.release(slot)
    return found


def _time_below(engine: Engine, slot: Slot, line: list[int], num_tokens: int) -> float:
    """The shortest of some steps that feed so many tokens: the end of `line`, and children of it."""
    durations: list[float] = []
    for turn in range(1 + _MEASUREMENTS):
        first = turn * num_tokens  # other children each time: what a slot holds is not fed again
        token_ids = [token_id % engine.vocab_size for token_id in range(first, first + num_tokens - 1)]
        slot.align(line[:-1])
        started = time.monotonic()
        engine.step([Job(slot, line, [LINE_END] * len(token_ids), token_ids)]).logits.sum().item()
        durations.append(time.monotonic() - started)
    return min(durations[1:])
