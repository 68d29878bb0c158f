"""Runs of a draft: several levels in a row, which a device drafts by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.gpu.floor import Row
from outrider.core.draft.outlook import Outlook
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES
from outrider.core.protocol.tree import SpeculationTree
from outrider.core.protocol.validation import EXPANSIONS_MAX
from outrider.engine.batch import bucket
from outrider.engine.compile.device_levels import LEVELS_AT_ONCE
from outrider.engine.compile.levels import LevelsJob
from outrider.engine.gpu.frontiers import CELLS_MAX
from outrider.engine.kv_cache.slots import Slot

NUM_LEVELS = LEVELS_AT_ONCE[0]
"""Of a run: a drafter has seldom more before something arrives."""

TREE_WIDTH = 2
"""Nodes of a level of a tree, children of the first one of the level above; and most guesses below a node."""


def level_size(num_sessions: int) -> int:
    """Most nodes of a level over so many sessions."""
    return max(EXPANSIONS_MAX, num_sessions)


def level_of(row: Row) -> Row:
    """A level of the row's sessions: each has an equal share of its nodes."""
    share = bucket(level_size(row.num_sessions)) // row.num_sessions
    return row._replace(num_tokens=min(share, EXPANSIONS_MAX))


def level_job(slot: Slot, line: Sequence[int], vocab_size: int) -> LevelsJob:
    """What a session drafts from: one guess below its line, and room for all that follows from it."""
    tree = SpeculationTree(len(line) - 1, line[-1])
    guess = tree.attach(tree.root, (line[-1] + 1) % vocab_size, 0.0)
    assert guess is not None
    chances = [math.log(chance) for chance in DRAFT_PROBABILITIES]
    outlook = Outlook(tree.root, [guess], TREE_WIDTH, CELLS_MAX, len(line) + NUM_LEVELS + 1, -math.inf, chances)
    return LevelsJob(slot, line, outlook, vocab_size, CELLS_MAX)
