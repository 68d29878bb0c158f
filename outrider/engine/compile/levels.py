"""Several levels of a draft as one call: the loop of `native/levels.cpp` around a graph, and what it leaves in slots.

It chooses the nodes of each level, feeds them and chooses what follows them. Where the graph was compiled ahead of time
the interpreter lock is released for all of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from outrider.core.draft.outlook import Expansion, Outlook
from outrider.core.estimate.confidence import MARGIN_EDGES
from outrider.core.protocol.tree import Node
from outrider.core.schedule.draft_run import Burst, Level
from outrider.engine import native
from outrider.engine.attention.native import NativeAttention
from outrider.engine.compile.export import TOKENS_MIN
from outrider.engine.kv_cache.slots import Slot, TreeCell
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.sampling_tables import SamplingTables

LINE_TOKENS_MAX = 32
"""Most tokens of lines, beside their last ones, that the first level feeds: what a round has committed and nobody had
drafted. With more of them a level would take several times as long as levels do, and no window would be sent meanwhile.
"""

_DOUBTFUL = -1
"""Number of guesses of a node that was fed, while what follows it is for others to choose."""


class LevelsJob(NamedTuple):
    """What one session drafts from."""

    slot: Slot
    line: Sequence[int]
    """All token ids of the line, the list that `Job` has. If its end is still to be expanded, the slot lacks the last
    ones, else none."""
    outlook: Outlook
    vocab_size: int
    """Token ids from here on are not chosen."""
    num_nodes_max: int
    """Most nodes that are fed of it."""


class Interruption(NamedTuple):
    """What ends a burst of levels: that a number has changed."""

    arrivals: Tensor
    """[2] int64, which another thread may write: how many commands have arrived, and how many of those made void
    whatever is drafted for the sessions of the loop."""
    num_read: int
    """What the first was. It is looked at between two levels."""
    num_void: int
    """What the second was. It is looked at before each operator of a pass too, where that is compiled."""


class LevelsOutput(NamedTuple):
    """What was drafted."""

    levels: list[Level]
    expansions: list[Expansion]
    """Level after level."""


class Loop(Protocol):
    """Drafts level after level. Nothing else may be done with its sessions until its end."""

    def draft(self, burst: Burst) -> LevelsOutput:
        """So many levels more; fewer when there is nothing more to expand, they take too long, or it is interrupted.
        The first one comes out unless it is void. Raises RuntimeError if a pass fails."""
        ...

    def end(self) -> None:
        """Gives back the blocks that it did not need."""
        ...


class Levels(Protocol):
    """Begins loops over what computes a level: a graph on a CPU (`DraftLevels`), or several on a GPU
    (`device_levels.py`)."""

    path: str
    """See `Forward.path`."""
    expands_lines: bool
    """Whether a loop can begin at the end of a line."""

    def begin(
        self,
        jobs: Sequence[LevelsJob],
        tables: SamplingTables,
        level_seconds: Sequence[float],
        interruption: Interruption,
        num_tokens_min: int,
    ) -> Loop | None:
        """A loop over these sessions; None if they have to draft step by step, such as where a slot lacks what stands
        above a node, or holds one that is to be fed, or where lines have grown by too much.

        Tokens are chosen by `tables`, and `level_seconds` are what a level over 1, 2, ... nodes is expected to take;
        there are no larger ones. Passes are padded to `num_tokens_min` tokens at least. Raises RuntimeError if the
        blocks run out.
        """
        ...


class DraftLevels:
    """Begins loops over one graph on a CPU. It is a `Levels`."""

    expands_lines = True
    """Whether a loop can begin at the end of a line."""

    def __init__(
        self,
        run: Callable[[list[Tensor]], list[Tensor]],
        package: int | None,
        attention: NativeAttention,
        cache: KVCache,
        path: str,
        size_of: Callable[[int], int],
    ) -> None:
        """`run` is the graph and `size_of` pads what it is fed, see `GraphForward`; `package` is its number, if it was
        compiled ahead of time."""
        self.path = path
        """See `Forward.path`."""
        self.run = run
        self.package = package
        self._attention = attention
        self._cache = cache
        self._size_of = size_of

    def begin(
        self,
        jobs: Sequence[LevelsJob],
        tables: SamplingTables,
        level_seconds: Sequence[float],
        interruption: Interruption,
        num_tokens_min: int,
    ) -> LevelLoop | None:
        """See `Levels.begin`. Tokens are chosen as `outrider.engine.sample.native.best_of` does."""
        paths = [found for job in jobs if (found := paths_of(job)) is not None]
        unfed = [unfed_tokens(job) for job in jobs]
        if len(paths) < len(jobs) or sum(max(len(each) - 1, 0) for each in unfed) > LINE_TOKENS_MAX:
            return None
        most = len(level_seconds)
        num_bins = len(jobs[0].outlook.log_acceptances)
        integers = array("q", (self._attention.number, self._cache.scratch_cell, self._cache.block_cells))
        integers.extend((interruption.num_read, interruption.num_void, most, len(MARGIN_EDGES), num_bins))
        integers.append(LINE_TOKENS_MAX)
        integers.extend(_padded_sizes(most + LINE_TOKENS_MAX, max(num_tokens_min, TOKENS_MIN), self._size_of))
        integers.extend(_padded_sizes(most, TOKENS_MIN, self._size_of))
        integers.append(len(jobs))
        reals = array("d", (*level_seconds, *MARGIN_EDGES))
        for each in zip(jobs, paths, unfed, strict=True):
            _write(*each, integers, reals)
        loop = native.levels()(
            torch.frombuffer(integers, dtype=torch.int64),
            torch.frombuffer(reals, dtype=torch.float64),
            tables.shaping,
            tables.seeds,
            interruption.arrivals,
        )
        return LevelLoop(self, jobs, loop)


class LevelLoop:
    """A `Loop` over one graph."""

    def __init__(self, graph: DraftLevels, jobs: Sequence[LevelsJob], loop: Any) -> None:
        """`loop` is a `Levels` of `native/levels.cpp`."""
        self._graph = graph
        self._jobs = jobs
        self._loop = loop

    def draft(self, burst: Burst) -> LevelsOutput:
        """See `Loop.draft`. It is interrupted between any two levels, and in a level that is void."""
        if self._graph.package is not None:
            found = self._loop.run(self._graph.package, *burst)
        else:
            while inputs := self._loop.next(*burst):
                self._loop.take(*self._graph.run(inputs))
            found = self._loop.found()
        return self._read(*(table.tolist() for table in found))

    def end(self) -> None:
        """See `Loop.end`."""
        for job in self._jobs:
            job.slot.settle()

    def _read(self, integers: list[int], seconds: list[float]) -> LevelsOutput:
        levels = list(map(Level, integers[1 : len(seconds) + 1], seconds))
        expansions: list[Expansion] = []
        place = len(levels) + 1
        while place < len(integers):
            origin, session, token_id, position, cell, parent_cell, num_guesses = integers[place : place + 7]
            place += 7
            job = self._jobs[session]
            if cell < len(job.line):
                job.slot.cached_prefix.extend(unfed_tokens(job))
            else:
                job.slot.hold(cell, TreeCell(parent_cell, token_id, position))
            if num_guesses != _DOUBTFUL:
                end = place + num_guesses
                token_ids, bins = integers[place:end], integers[end : end + num_guesses]
                expansions.append(Expansion(session, origin, token_id, token_ids, bins))
                place = end + num_guesses
        return LevelsOutput(levels, expansions)


@cache
def _padded_sizes(most: int, smallest: int, size_of: Callable[[int], int]) -> Sequence[int]:
    """To how many tokens 1, 2, ... `most` of them are padded, or rows: `smallest` at least."""
    return [size_of(max(size, smallest)) for size in range(1, most + 1)]


def unfed_tokens(job: LevelsJob) -> Sequence[int]:
    """The tokens of its line that the slot lacks."""
    return job.line[len(job.slot.cached_prefix) :]


def paths_of(job: LevelsJob) -> list[list[int]] | None:
    """For each node that may be expanded the cells of those between the line and it; None if the slot is not fit: what
    stands above a node was fed, and the node itself was not."""
    slot, tip, root = job.slot, len(job.line) - 1, job.outlook.root
    if (len(slot.cached_prefix) > tip) == (root in job.outlook.nodes):
        return None
    path_of: dict[Node, list[int]] = {root: []}
    found: list[list[int]] = []
    for node in job.outlook.nodes:
        if node is root:
            found.append([])
            continue
        above: list[Node] = []
        parent = node.parent
        while parent is not None and parent not in path_of:
            above.append(parent)
            parent = parent.parent
        if parent is None:
            return None
        path = path_of[parent]
        for each in reversed(above):
            cell = slot.find(path[-1] if path else tip, each.token_id)
            if cell is None:
                return None
            path = path_of[each] = [*path, cell]
        if slot.find(path[-1] if path else tip, node.token_id) is not None:
            return None
        found.append(path)
    return found


def reserved_cells(job: LevelsJob) -> list[int]:
    """Cells for the nodes that are fed, for which the slot takes memory. Raises RuntimeError if the blocks run out."""
    slot, line_end = job.slot, len(job.line)
    free = [cell for cell in islice(slot.free_cells(line_end), job.num_nodes_max) if cell < slot.num_cells]
    slot.reserve(free[-1] + 1 if free else line_end)
    return free


def _write(
    job: LevelsJob, paths: Sequence[Sequence[int]], unfed: Sequence[int], integers: array[int], reals: array[float]
) -> None:
    """What the loop reads of one session."""
    slot, line, outlook = job.slot, job.line, job.outlook
    free = reserved_cells(job)
    integers.extend((slot.index, len(line), outlook.width, outlook.credit, outlook.max_length, job.vocab_size))
    integers.extend((len(slot.blocks), len(free), len(unfed), *slot.blocks, *free, *unfed, len(paths)))
    reals.extend((outlook.root.path_log_prob, outlook.log_floor, *outlook.log_acceptances))
    for node, path in zip(outlook.nodes, paths, strict=True):
        integers.extend((node.token_id, node.position, len(path), *path))
        reals.append(node.path_log_prob)
