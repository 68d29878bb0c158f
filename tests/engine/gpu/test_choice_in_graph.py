"""Captured steps that choose tokens: recorded from padding, replayed for any sessions, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine import native
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.compile.choice import ChoiceInGraph
from outrider.engine.compile.graphs import StepGraphs
from outrider.engine.engine import Engine, StepOutput
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.sample import fused
from outrider.engine.sample.sampler import Row, Sampler
from outrider.worker import step_runner
from tests.engine.gpu.launches import Launches, logged
from tests.engine.gpu.waiting import guarded
from tests.engine.histories import CPU, Rig, random_line
from tests.engine.samplers import EVERYTHING
from tests.engine.tape import Tape
from tests.engine.tiny_models import VOCAB_SIZE, build
from tests.worker.driven import Bench

pytestmark = pytest.mark.usefixtures("interpreter")

META = torch.device("meta")
KINDS = (
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=2**64 - 5),
    SamplingParams(temperature=1.1, top_p=0.8, seed=2),
    SamplingParams(temperature=1.3, top_k=20, min_p=0.02, top_p=0.9, seed=3),
)


@pytest.fixture(autouse=True)
def willing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backend and choice take any device."""
    monkeypatch.setattr(TreeAttention, "problem", classmethod(lambda cls, facts: ""))
    monkeypatch.setattr(native, "available", lambda device: False)
    monkeypatch.setattr(fused, "problem", lambda device: "")
    monkeypatch.setattr(step_runner, "measure", lambda engine: [])  # the interpreter's times say nothing


@pytest.fixture(autouse=True)
def launches() -> Iterator[Launches]:
    """What is launched, on the tape too."""
    with logged() as found:
        yield found


def choosing(engine: Engine) -> Tape:
    """From now on small steps of the engine are replayed and choose."""
    model, tape = engine._model, Tape()
    assert isinstance(model.attention, TreeAttention)
    graphs = StepGraphs(model.decoder.run_static, model.attention, tape, ChoiceInGraph(engine.tables))
    with torch.inference_mode():
        for size in (16, 8, 4):
            graphs.capture(size)
    model.forwards.insert(0, graphs)
    return tape


class Sampled:
    """A rig whose small steps are replayed and choose, and a session of each kind."""

    def __init__(self, kinds: tuple[SamplingParams, ...] = KINDS, device: torch.device = CPU) -> None:
        self.engine = Rig("llama", attention="tree", device=device).engine
        self.tape = choosing(self.engine)
        self.sampler = Sampler(VOCAB_SIZE, 4, device, tables=self.engine.tables)
        self.slots = [self.engine.acquire() for _ in kinds]
        self.lines = [random_line(5 + 3 * index, seed=index) for index in range(len(kinds))]
        for slot, line, params in zip(self.slots, self.lines, kinds, strict=True):
            self.sampler.open(slot.index, params, line, [])
            self.engine.step([Job(slot, line)])

    def step(self, num_choices: int) -> tuple[StepOutput, list[Row]]:
        """Over each line's end, and two nodes below it."""
        jobs = [
            Job(slot, line, [LINE_END, 0], [1, 2], wanted=[LINE_END, 0, 1], num_choices=num_choices)
            for slot, line in zip(self.slots, self.lines, strict=True)
        ]
        rows = [Row(job.slot.index, len(job.line) + depth) for job in jobs for depth in range(3)]
        return self.engine.step(jobs), rows


def test_a_replay_chooses_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = Sampled()
    num_choices = sampled.sampler.num_choices([slot.index for slot in sampled.slots])
    assert num_choices == 1
    found = []
    for turn in range(2):
        output, rows = sampled.step(num_choices)
        assert sampled.engine.path == "graph+choice"
        found.append((sampled.sampler.choose(output.logits, rows, best=output.best), output.logits, rows))
        for line in sampled.lines:
            line.append(7 + turn)
    assert sampled.tape.num_replays == len(KINDS) + 2
    monkeypatch.setattr(fused, "problem", lambda device: "none here")
    for chosen, logits, rows in found:
        assert chosen == sampled.sampler.choose(logits, rows)
    assert found[0][0] != found[1][0]


def test_a_replay_proposes_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session that knows fewer tokens, none of the others."""
    sampled = Sampled()
    few = VOCAB_SIZE // 2
    sampled.sampler.open(sampled.slots[1].index, KINDS[1], sampled.lines[1], [], few)
    output, rows = sampled.step(sampled.sampler.num_choices([slot.index for slot in sampled.slots], 3))
    token_ids, margins = sampled.sampler.propose(output.logits, rows, 3, best=output.best)
    output.logits[3:6, few:] = -torch.inf
    monkeypatch.setattr(fused, "problem", lambda device: "none here")
    expected_ids, expected_margins = sampled.sampler.propose(output.logits, rows, 3)
    assert token_ids == expected_ids
    for each, expected in zip(margins, expected_margins, strict=True):
        assert each == pytest.approx(expected, abs=1e-9)


def test_what_needs_more_than_one_pass_is_chosen_outside() -> None:
    """By step: one session with penalties, and the whole step is chosen from the logits."""
    sampled = Sampled((*KINDS[:2], EVERYTHING))
    slots = [slot.index for slot in sampled.slots]
    assert sampled.sampler.num_choices(slots[:2], 1) == 2
    assert sampled.sampler.num_choices(slots) == 0
    output, rows = sampled.step(0)
    assert output.best is None
    assert sampled.engine.path == "graph"
    assert len(sampled.sampler.choose(output.logits, rows)) == len(rows)


def test_a_row_that_rounding_may_decide_is_left_to_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = Sampled(KINDS[2:3])
    sampled.engine.tables.shaping[2, sampled.slots[0].index] = 1e-300  # the first token is at its bound
    output, rows = sampled.step(1)
    assert output.best is not None
    assert (output.best[0, :, 0] == -1).all()
    chosen = sampled.sampler.choose(output.logits, rows, best=output.best)
    assert chosen == output.logits.argmax(-1).tolist()


def test_a_step_that_chooses_is_one_copy_and_one_replay(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = Sampled(device=META)
    for num_choices in (1, 0):
        launches.log.clear()
        with guarded(monkeypatch, META.type) as guard:
            output, rows = sampled.step(num_choices)
        assert guard.num_copies == 1
        assert (launches.num["scan"], launches.num["decide"]) == (1, 1)
        assert (output.best is None) == (num_choices == 0)
        assert output.best is None or output.best.shape[:2] == (2, len(rows))


def test_a_verifier_whose_steps_choose_writes_what_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a session has penalties the sampler chooses for all."""
    engines = [
        Engine(build("llama", layers=1), max_sessions=4, max_context=128, attention=name) for name in ("tree", "torch")
    ]
    choosing(engines[0])
    for kinds, path in ((KINDS[:3], "graph+choice"), ((*KINDS[:2], EVERYTHING), "graph")):
        written: list[list[list[int]]] = []
        for engine in engines:
            bench = Bench(engine)
            sessions = [
                bench.open(str(index), random_line(5 + index, seed=index), 4, sampling=kind)
                for index, kind in enumerate(kinds)
            ]
            bench.run()
            written.append([session.token_ids for session in sessions])
            monkeypatch.setattr(fused, "problem", lambda device: "none here")
        assert written[0] == written[1]
        assert engines[0].path == path
        monkeypatch.setattr(fused, "problem", lambda device: "")
