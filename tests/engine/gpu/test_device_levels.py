"""Levels of a draft in graphs, recorded from padding and replayed in Triton's interpreter, draft what steps draft."""

from __future__ import annotations

import math

import pytest
import torch

from outrider.core.draft.outlook import Outlook
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import SpeculationTree
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.compile.choice import ChoiceInGraph
from outrider.engine.compile.device_levels import LEVELS_AT_ONCE, DeviceLevels
from outrider.engine.compile.levels import Interruption, LevelsJob
from outrider.engine.engine import Engine
from outrider.engine.jobs import Job
from tests.engine.gpu.launches import Launches
from tests.engine.gpu.waiting import guarded
from tests.engine.histories import Rig, random_line
from tests.engine.tape import Tape, graphed
from tests.engine.test_levels import KINDS, Drafted
from tests.engine.tiny_models import VOCAB_SIZE, build
from tests.worker.driven import FixedCurve

pytestmark = pytest.mark.usefixtures("launches", "willing_to_choose")

NUM_ROWS = 16
META = torch.device("meta")


def engine_of(*, at_once: bool) -> Engine:
    """Its steps over up to 16 tokens are replayed, and levels where they are drafted at once."""
    engine = Engine(build("llama", layers=1), max_sessions=4, max_context=128, attention="tree", pad_tokens=NUM_ROWS)
    choice = ChoiceInGraph(engine.tables)
    graphed(engine, Tape(), [NUM_ROWS], choice)
    if at_once:
        with_levels(engine, choice)
    return engine


def with_levels(engine: Engine, choice: ChoiceInGraph) -> DeviceLevels:
    model = engine._model
    assert isinstance(model.attention, TreeAttention)
    levels = DeviceLevels(model.decoder.run_static, model.attention, model.cache, Tape(), choice, 4)
    assert levels.sizes == [NUM_ROWS]
    with torch.inference_mode():
        levels.capture(NUM_ROWS)
    model.levels = levels
    return levels


def drafted(engine: Engine, kinds: tuple[SamplingParams, ...], vocab_size: int = VOCAB_SIZE) -> Drafted:
    """On a device that takes as long for any number of rows."""
    found = Drafted(engine, kinds, vocab_size)
    found.drafter.scheduler.policy.estimates.curve = FixedCurve(1e-3, 0.0)
    return found


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=["sampled", "top_k"])
async def test_levels_of_one_session_are_those_of_as_many_steps(kind: SamplingParams) -> None:
    """Node by node, also below what a commit has left of the tree, and of fewer tokens than the model knows."""
    trees = []
    for at_once in (False, True):
        found = drafted(engine_of(at_once=at_once), (kind,), VOCAB_SIZE - 9)
        for num_levels in (2, 2):
            found.draft(num_levels, at_once=at_once)
            found.commit(1)
        found.draft(1, at_once=False)
        assert found.num_runs == 2 * at_once
        trees.append((found.trees(), found.held()))
    (expected, expected_held), (tree, held) = trees
    assert tree == expected
    assert len(tree[0]) > 20
    for ours, theirs in zip(held, expected_held, strict=True):
        assert ours.keys() == theirs.keys()
        for path, content in ours.items():
            torch.testing.assert_close(content, theirs[path])


async def test_sessions_that_draft_together_propose_what_each_proposes_alone() -> None:
    """They take other nodes, since each has its share of the rows; below the same node they guess the same.

    News ends a run between two bursts, a step chooses what rounding may decide, and nobody drafts beyond its credit.
    """
    by_steps, by_runs = (drafted(engine_of(at_once=at_once), KINDS[1:3]) for at_once in (False, True))
    by_steps.draft(3, at_once=False)
    by_runs.draft(3, at_once=True)
    assert by_runs.num_runs == 1
    assert by_runs.drafter.runner.engine.path == "graph+levels"
    for ours, theirs in zip(by_runs.trees(), by_steps.trees(), strict=True):
        both = [path for path in ours.keys() & theirs.keys() if ours[path][1] and theirs[path][1]]
        assert len(both) > 4
        assert all(ours[path] == theirs[path] for path in both)

    fed = sum(map(len, by_runs.held()))
    by_runs.drafter.arrivals.announce()
    by_runs.draft(16, at_once=True)
    assert fed < sum(map(len, by_runs.held())) < fed + 16 * NUM_ROWS
    by_runs.drafter.arrivals.take_up()

    by_runs.commit(1)  # what falls away leaves room for more
    place = by_runs.drafter.admission.seated[0].slot
    by_runs.drafter.runner.engine.tables.shaping[2, place] = 5e-324  # the first token is at its bound
    num_nodes = len(by_runs.trees()[0])
    for _ in range(3):
        by_runs.draft(2, at_once=True)
    assert len(by_runs.trees()[0]) > num_nodes
    for session in by_runs.sessions:
        state = by_runs.drafter.scheduler.sessions[session].state
        assert state.tree.num_live <= session.opening.max_run_ahead


def test_levels_are_queued_without_waiting(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three copies to the device, and as many launches whatever is drafted."""
    engine = Rig("llama", device=META, attention="tree").engine
    choice = ChoiceInGraph(engine.tables)
    graphed(engine, Tape(), [NUM_ROWS], choice)
    levels, slot, line = with_levels(engine, choice), engine.acquire(), random_line(9, seed=1)
    engine.step([Job(slot, line)])
    tree = SpeculationTree(len(line) - 1, line[-1])
    node = tree.attach(tree.root, 3, -0.1)
    assert node is not None
    outlook = Outlook(tree.root, [node], 4, 90, 100, -math.inf, [math.log(each) for each in DRAFT_PROBABILITIES])
    job = LevelsJob(slot, line, outlook, VOCAB_SIZE, 64)
    launches.log.clear()
    with guarded(monkeypatch, META.type) as guard, torch.inference_mode():
        loop = levels.begin([job], engine.tables, [1e-3] * NUM_ROWS, Interruption(torch.zeros(2).long(), 0, 0), 0)
        assert loop is not None
        levels.replay(NUM_ROWS, 6)
    assert guard.num_copies == 3
    num_graphs = 1 + 6 - LEVELS_AT_ONCE[0]  # one of four levels, two of one
    num_layers = len(engine._model.facts.layers)
    assert (launches.num["advance"], launches.num["scan"], launches.num["decide"]) == (6 + num_graphs, 6, 6)
    assert launches.num["attend"] == 6 * num_layers
    loop.end()
