"""A loop over many sessions: what its first level feeds has a bound, over all of them."""

from __future__ import annotations

import math

import pytest
import torch

from outrider.core.draft.outlook import Outlook
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import SpeculationTree
from outrider.core.schedule.draft_run import Burst
from outrider.engine.compile.levels import LINE_TOKENS_MAX, Interruption, LevelsJob
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from outrider.engine.sample.sampler import Sampler
from tests.engine.histories import random_line
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("native_operators")

LOG_ACCEPTANCES = [math.log(each) for each in DRAFT_PROBABILITIES]
NUM_SESSIONS = 16


def level_sizes(nums_unfed: list[int]) -> list[int] | None:
    """Of how many nodes the first level of a loop is over sessions whose slots lack so many tokens of their lines.

    Where they lack none, a guess is to be expanded. None: there is no loop.
    """
    engine = Engine(build("llama", layers=1), max_sessions=NUM_SESSIONS, max_context=64)
    engine.export()
    sampler = Sampler(engine.vocab_size, NUM_SESSIONS, engine.device, tables=engine.tables)
    jobs: list[LevelsJob] = []
    for number, num_unfed in enumerate(nums_unfed):
        slot, line = engine.acquire(), random_line(12, seed=number)
        sampler.open(slot.index, SamplingParams(), line, [])
        engine.step([Job(slot, line[: len(line) - num_unfed])])
        tree = SpeculationTree(len(line) - 1, line[-1])
        guess = tree.attach(tree.root, 7, -0.1)
        assert guess is not None
        node = tree.root if num_unfed else guess
        outlook = Outlook(tree.root, [node], 2, 90, 60, -math.inf, LOG_ACCEPTANCES)
        jobs.append(LevelsJob(slot, line, outlook, engine.vocab_size, 8))
    interruption = Interruption(torch.zeros(2, dtype=torch.int64), 0, 0)
    with engine.level_loop(jobs, engine.tables, [1e-3] * NUM_SESSIONS, interruption) as loop:
        if loop is None:
            return None
        return [level.num_nodes for level in loop.draft(Burst(1, 60.0)).levels]


def test_lines_that_have_grown_by_as_much_as_may_be_are_fed_in_one_level() -> None:
    beside = LINE_TOKENS_MAX // 4
    assert level_sizes([5] * beside + [1] + [0] * (NUM_SESSIONS - beside - 1)) == [NUM_SESSIONS]


def test_lines_that_have_grown_by_too_much_together_are_fed_by_a_step() -> None:
    """However many sessions are beside, of which each has one token in a level."""
    beside = LINE_TOKENS_MAX // 4
    assert level_sizes([5] * beside + [2] + [0] * (NUM_SESSIONS - beside - 1)) is None
