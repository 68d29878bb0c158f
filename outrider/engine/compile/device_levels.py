"""Several levels of a draft on a GPU: graphs that expand, feed and choose, and what they leave in slots.

It is `levels.py` for devices on which captured steps choose. The host says what the sessions are and how many levels to
draft, and waits once, for all that came out. What a level expands differs in one point: each session has an equal share
of a step's rows and takes of its nodes what is worth drafting, since filling rows costs a GPU next to nothing. No GPU
has run this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.core.draft.outlook import Expansion
from outrider.core.estimate.confidence import MARGIN_EDGES, margin_bin
from outrider.core.protocol.validation import EXPANSIONS_MAX
from outrider.core.schedule.draft_run import LEVELS_MAX, Burst, Level
from outrider.engine.attention.tree import TreeAttention, TreeStep
from outrider.engine.batch import CAPTURED_SIZES, PackedBatch, SessionSpan, bucket
from outrider.engine.compile.choice import ChoiceInGraph
from outrider.engine.compile.graphs import Pass
from outrider.engine.compile.levels import Interruption, LevelsJob, LevelsOutput, paths_of, reserved_cells
from outrider.engine.gpu.frontiers import (
    CELLS_MAX,
    DOUBTFUL,
    GUESSES,
    MARGINS,
    NOT_TAKEN,
    NUM_GUESSES,
    Start,
    StartNode,
    frontiers,
    written,
)
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX, TreeCell
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.sampling_tables import SamplingTables
from outrider.engine.transfer import staged

LEVELS_AT_ONCE = (4, 1)
"""Levels of a graph: bursts are made of these, and most have fewer than five."""


class _Sizes(NamedTuple):
    num_rows: int
    num_levels: int


class DeviceLevels:
    """Begins loops over graphs of whole levels. It is a `Levels`."""

    path = "graph+levels"
    """See `Forward.path`."""
    expands_lines = False
    """See `DraftLevels`."""

    def __init__(
        self,
        forward: Callable[[TreeStep], Tensor],
        attention: TreeAttention,
        cache: KVCache,
        record: Callable[[Pass], Pass],
        choice: ChoiceInGraph,
        max_sessions: int,
    ) -> None:
        """For up to `max_sessions` sessions, or as many as a captured step has rows; see `StepGraphs`."""
        self._forward = forward
        self._attention = attention
        self._cache = cache
        self._record = record
        self._choice = choice
        self._passes: dict[_Sizes, Pass] = {}
        most = bucket(max(max_sessions, EXPANSIONS_MAX))
        self.sizes = [size for size in CAPTURED_SIZES if EXPANSIONS_MAX <= size <= most]
        """Rows of the steps that are worth capturing: as many as a level may expand."""
        self._frontiers = frontiers(
            min(max_sessions, CAPTURED_SIZES[-1]),
            self.sizes[-1],
            LEVELS_MAX,
            MARGIN_EDGES,
            attention.windows,
            cache.storages[0].device,
        )

    def capture(self, num_rows: int) -> None:
        """Records levels over that many rows, from padding alone; see `StepGraphs.capture`."""
        self._frontiers.integers.zero_()
        for num_levels in LEVELS_AT_ONCE:
            self._attention.load(PackedBatch(), num_rows)
            size = _Sizes(num_rows, num_levels)
            self._passes[size] = self._record(partial(self._run, size))

    def _run(self, size: _Sizes) -> Tensor:
        """Returns what was chosen last: of levels nobody wants the logits, so that other graphs may use their place."""
        from outrider.engine.gpu.advance import between  # it wants Triton

        step = self._attention.read(size.num_rows)
        best = self._choice.best(size.num_rows)
        advance = partial(between, self._frontiers, best, step.work, self._cache.scratch_cell)
        advance(expands=False, takes=True)
        for level in range(size.num_levels):
            self._choice.choose(self._forward(step), step)
            advance(expands=True, takes=level + 1 < size.num_levels)
        return best

    def begin(
        self,
        jobs: Sequence[LevelsJob],
        tables: SamplingTables,
        level_seconds: Sequence[float],
        interruption: Interruption,
        num_tokens_min: int,
    ) -> DeviceLevelLoop | None:
        """See `Levels.begin`; None, too, if no graph takes so many sessions or so long ones. Tokens are chosen by
        `tables`, those of the engine, and a level has as many rows as `level_seconds` has numbers, rounded up."""
        size = bucket(max(len(level_seconds), num_tokens_min))
        paths = [found for job in jobs if (found := paths_of(job)) is not None]
        if _Sizes(size, 1) not in self._passes or len(paths) < len(jobs) or len(jobs) > len(self._frontiers.reals):
            return None
        share = min(size // len(jobs), EXPANSIONS_MAX)
        cells = [_cells(job) for job in jobs]
        batch = self._batch(jobs, cells, share)
        if self._attention.size_of(batch) != size:
            for job in jobs:
                job.slot.settle()
            return None
        self._attention.load(batch, size)
        starts = [_start(*each) for each in zip(jobs, cells, paths, strict=True)]
        integers, reals = written(starts, share)
        for numbers, place in ((integers, self._frontiers.integers), (reals, self._frontiers.reals.view(-1))):
            content = torch.frombuffer(numbers, dtype=place.dtype)
            place[: len(content)].copy_(staged(content, place.device), non_blocking=True)
        return DeviceLevelLoop(self, jobs, interruption, _Sizes(size, share))

    def _batch(self, jobs: Sequence[LevelsJob], cells: Sequence[Sequence[int]], share: int) -> PackedBatch:
        """A step over so many tokens of each, which see what any of them may see. Which they are the device says."""
        batch = PackedBatch(block_cells=self._cache.block_cells)
        for job, its_cells in zip(jobs, cells, strict=True):
            first, line_end = len(batch.token_ids), len(job.line)
            end_cell = max(its_cells, default=line_end - 1) + 1
            batch.sessions.append(SessionSpan(first, first + share, len(batch.blocks), end_cell))
            batch.blocks += job.slot.blocks
            for _ in range(share):
                batch.path_cells += its_cells[-1:]
                batch.path_offsets.append(len(batch.path_cells))
            batch.limits += [line_end] * share
            batch.positions += [line_end] * share
            batch.write_cells += [self._cache.scratch_cell] * share
            batch.token_ids += [0] * share
        batch.rows = list(range(len(batch.token_ids)))
        return batch

    def replay(self, num_rows: int, num_levels: int) -> None:
        """Queues so many levels more."""
        for at_once in LEVELS_AT_ONCE:
            for _ in range(num_levels // at_once):
                self._passes[_Sizes(num_rows, at_once)]()
            num_levels %= at_once

    def log(self, num_rows: int, first: int, end: int) -> list[list[list[float]]]:
        """What came out of those levels. It waits for the device."""
        log = self._frontiers.log
        return log.view(-1, log.shape[-1])[first * num_rows : end * num_rows].view(end - first, num_rows, -1).tolist()


class DeviceLevelLoop:
    """A `Loop` over graphs of whole levels."""

    def __init__(
        self, graphs: DeviceLevels, jobs: Sequence[LevelsJob], interruption: Interruption, size: tuple[int, int]
    ) -> None:
        """`size` are a step's rows, and those of each session."""
        self._graphs = graphs
        self._jobs = jobs
        self._interruption = interruption
        self._num_rows, self._share = size
        self._num_levels = 0
        self._expansion_of: dict[int, int] = {}
        """By the place of its row among all rows of all levels."""

    def draft(self, burst: Burst) -> LevelsOutput:
        """See `Loop.draft`. What is queued is not interrupted: it is what a window waits for."""
        first = self._num_levels
        end = min(first + burst.num_levels, LEVELS_MAX)
        if first == end or (first and self._interruption.arrivals[0].item() != self._interruption.num_read):
            return LevelsOutput([], [])
        started = time.monotonic()
        self._graphs.replay(self._num_rows, end - first)
        log = self._graphs.log(self._num_rows, first, end)
        self._num_levels = end
        seconds = (time.monotonic() - started) / (end - first)
        levels: list[Level] = []
        expansions: list[Expansion] = []
        for number, level in enumerate(log, first):
            rows = [(place, row) for place, row in enumerate(self._own(level)) if row[NUM_GUESSES] != NOT_TAKEN]
            if not rows:
                break
            levels.append(Level(len(rows), seconds))
            for place, row in rows:
                if (expansion := self._read(place // self._share, row)) is not None:
                    self._expansion_of[number * self._num_rows + place] = len(self._expansion_of)
                    expansions.append(expansion)
        return LevelsOutput(levels, expansions)

    def _own(self, level: list[list[float]]) -> list[list[float]]:
        return level[: self._share * len(self._jobs)]

    def _read(self, session: int, row: Sequence[float]) -> Expansion | None:
        token_id, position, origin, parent_cell, cell, num_guesses = map(int, row[: NUM_GUESSES + 1])
        self._jobs[session].slot.hold(cell, TreeCell(parent_cell, token_id, position))
        if num_guesses == DOUBTFUL:
            return None
        guesses, margins = (row[first : first + num_guesses] for first in (GUESSES, MARGINS))
        origin = origin if origin < 0 else self._expansion_of[origin]
        return Expansion(session, origin, token_id, list(map(int, guesses)), list(map(margin_bin, count(), margins)))

    def end(self) -> None:
        """See `Loop.end`."""
        for job in self._jobs:
            job.slot.settle()


def _cells(job: LevelsJob) -> list[int]:
    """Free ones that a mask reaches."""
    end = len(job.line) + TREE_CELLS_MAX
    return [cell for cell in reserved_cells(job)[:CELLS_MAX] if cell < end]


def _start(job: LevelsJob, cells: Sequence[int], paths: Sequence[Sequence[int]]) -> Start:
    outlook = job.outlook
    return Start(
        job.slot.index,
        len(job.line),
        outlook.width,
        outlook.credit,
        outlook.max_length,
        cells,
        job.slot.places(cells),
        [
            StartNode(node.token_id, node.position, path, node.path_log_prob)
            for node, path in zip(outlook.nodes, paths, strict=True)
        ],
        outlook.root.path_log_prob,
        outlook.log_floor,
        outlook.log_acceptances,
    )
