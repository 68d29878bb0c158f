"""Captured steps that choose tokens: recorded from padding, replayed for any sessions, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.compile.choice import ChoiceInGraph
from outrider.engine.engine import Engine, StepOutput
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.sample import fused
from outrider.engine.sample.allowed import allowed_of
from outrider.engine.sample.sampler import Row, Sampler
from tests.engine.gpu.launches import Launches
from tests.engine.gpu.waiting import WaitsError, guarded
from tests.engine.histories import CPU, built, random_line
from tests.engine.samplers import EVERYTHING
from tests.engine.tape import Tape, graphed
from tests.engine.tiny_models import VOCAB_SIZE, build
from tests.worker.driven import Bench
from tests.worker.test_overlap import LateBench, OverlappingEngine

pytestmark = pytest.mark.usefixtures("launches", "willing_to_choose")

META = torch.device("meta")
NUM_TOKENS = 16
KINDS = (
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=2**64 - 5),
    SamplingParams(temperature=1.1, top_p=0.8, seed=2),
    SamplingParams(temperature=1.3, top_k=20, min_p=0.02, top_p=0.9, seed=3),
)


def choosing(engine: Engine) -> Tape:
    """From now on steps of the engine over up to 16 tokens are replayed and choose."""
    tape = Tape()
    graphed(engine, tape, [NUM_TOKENS], ChoiceInGraph(engine.tables))
    return tape


class Sampled:
    """An engine whose steps choose, and a session of each kind."""

    def __init__(self, kinds: Sequence[SamplingParams], device: torch.device = CPU) -> None:
        self.engine = Engine(
            built("llama", device, torch.float32),
            max_sessions=4,
            max_context=64,
            attention="tree",
            pad_tokens=NUM_TOKENS,
        )
        self.tape = choosing(self.engine)
        self.sampler = Sampler(VOCAB_SIZE, 4, device, tables=self.engine.tables)
        self.slots = [self.engine.acquire() for _ in kinds]
        self.lines = [random_line(4, seed=index) for index in range(len(kinds))]
        for slot, line, params in zip(self.slots, self.lines, kinds, strict=True):
            self.sampler.open(slot.index, params, line, [])
        self.engine.step([Job(slot, line) for slot, line in zip(self.slots, self.lines, strict=True)])

    def num_choices(self, num_proposed: int = 0) -> int:
        return self.sampler.num_choices([slot.index for slot in self.slots], num_proposed)

    def step(self, num_choices: int) -> tuple[StepOutput, list[Row]]:
        """Over what is new of each line, and a node below it."""
        jobs = [
            Job(slot, line, [LINE_END], [1], wanted=[LINE_END, 0], num_choices=num_choices)
            for slot, line in zip(self.slots, self.lines, strict=True)
        ]
        rows = [Row(job.slot.index, len(job.line) + depth) for job in jobs for depth in range(2)]
        return self.engine.step(jobs), rows


def test_replays_choose_and_propose_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is in a step, one session knowing fewer tokens; a row that rounding may decide is left to the sampler."""
    sampled, few = Sampled(KINDS), VOCAB_SIZE // 2
    chosen: list[tuple[list[int], Tensor, list[Row]]] = []
    for turn in range(2):
        output, rows = sampled.step(sampled.num_choices())
        assert sampled.engine.path == "graph+choice"
        chosen.append((sampled.sampler.choose(output.logits, rows, best=output.best), output.logits, rows))
        for line in sampled.lines:
            line.append(7 + turn)
    assert sampled.tape.num_replays == 3
    sampled.sampler.open(sampled.slots[1].index, KINDS[1], sampled.lines[1], [], few)
    sampled.engine.tables.shaping[2, sampled.slots[2].index] = 5e-324  # the first token is at its bound
    output, rows = sampled.step(sampled.num_choices(3))
    assert output.best is not None
    assert (output.best[0, :, 0] == -1).tolist() == [row.slot == sampled.slots[2].index for row in rows]
    token_ids, margins = sampled.sampler.propose(output.logits, rows, 3, best=output.best)
    logits = output.logits.clone()
    logits[2:4, few:] = -torch.inf
    monkeypatch.setattr(fused, "problem", lambda device: "none here")
    expected_ids, expected_margins = sampled.sampler.propose(logits, rows, 3)
    assert token_ids == expected_ids
    for each, expected in zip(margins, expected_margins, strict=True):
        assert each == pytest.approx(expected, abs=1e-9)
    sampled.engine.tables.shaping[2, sampled.slots[2].index] = KINDS[2].top_p
    sampled.sampler.open(sampled.slots[1].index, KINDS[1], sampled.lines[1], [])
    for found, logits, rows in chosen:
        assert found == sampled.sampler.choose(logits, rows)
    assert chosen[0][0] != chosen[1][0]


def test_a_step_that_chooses_is_one_copy_and_one_replay(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it waits for nothing. A session with penalties leaves the choice of all to the sampler."""
    sampled = Sampled(KINDS, META)
    for num_choices in (sampled.num_choices(2), 0):
        launches.log.clear()
        with guarded(monkeypatch, META.type) as guard:
            output, rows = sampled.step(num_choices)
        assert guard.num_copies == 1
        assert (launches.num["scan"], launches.num["decide"]) == (1, 1)
        assert sampled.engine.path == ("graph+choice" if num_choices else "graph")
        assert (output.best is None) == (num_choices == 0)
        assert output.best is None or output.best.shape[:2] == (2, len(rows))
    assert (sampled.num_choices(), sampled.num_choices(1), sampled.num_choices(4)) == (1, 2, 4)
    sampled.sampler.open(sampled.slots[3].index, EVERYTHING, sampled.lines[3], [])
    assert (sampled.num_choices(), sampled.num_choices(4)) == (0, 0)


def test_a_choice_behind_a_step_is_queued_without_waiting(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step leaves to the sampler: one copy of rows where that is all, and more for penalties and grammars."""
    sampler = Sampler(VOCAB_SIZE, 2, META)
    line = random_line(4, seed=1)
    logits = torch.empty(2, VOCAB_SIZE, dtype=torch.bfloat16, device=META)
    allowed = allowed_of([1], [bytes(-(-VOCAB_SIZE // 8))])
    for kinds, masks, num_copies, num_scans in (
        ((SamplingParams(), SamplingParams()), None, 0, 0),  # torch has a largest number, too
        (KINDS[:2], None, 1, 1),
        (KINDS[1:3], allowed, 3, 1),
        ((KINDS[1], EVERYTHING), None, 4, 1),
    ):
        for slot, params in enumerate(kinds):
            sampler.open(slot, params, line, line[:1])
        launches.log.clear()
        with guarded(monkeypatch, META.type) as guard, torch.inference_mode():
            sampler.begin_choice(logits, [Row(0, 9), Row(1, 9, (5, 6))], masks)
        assert (guard.num_copies, launches.num["scan"]) == (num_copies, num_scans)


def test_log_probabilities_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, logits = Sampler(VOCAB_SIZE, 2, META), torch.empty(2, VOCAB_SIZE, dtype=torch.bfloat16, device=META)
    waits = pytest.raises(WaitsError, match="brought to the host")
    with guarded(monkeypatch, META.type) as guard, torch.inference_mode(), waits:
        sampler.logprobs(logits, [3, 5], 4)
    assert guard.num_copies == 1


def test_a_step_in_flight_keeps_what_it_chose(launches: Launches) -> None:
    """Two steps over different sessions: the second replay writes where the first one did, before either is read."""
    sampled = Sampled(KINDS[1:3])
    jobs = [
        Job(slot, line, [LINE_END], [1], wanted=[LINE_END, 0], num_choices=1)
        for slot, line in zip(sampled.slots, sampled.lines, strict=True)
    ]
    rows = [[Row(job.slot.index, len(job.line) + depth) for depth in range(2)] for job in jobs]
    tickets = [sampled.engine.launch([job]) for job in jobs]
    assert [ticket.path for ticket in tickets] == ["graph+choice"] * 2
    launches.log.clear()
    choices = [
        sampled.sampler.begin_choice(ticket.output.logits, its, best=ticket.output.best)
        for ticket, its in zip(tickets, rows, strict=True)
    ]
    found = [choice() for choice in choices]
    assert not launches.log
    assert found == [
        sampled.sampler.choose(sampled.engine.collect(ticket).logits, its)
        for ticket, its in zip(tickets, rows, strict=True)
    ]
    assert found[0] != found[1]


async def test_a_verifier_whose_steps_choose_writes_what_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one group and in two, of which one is launched before what the other chose is read."""
    written: list[list[list[int]]] = []
    for overlaps, attention in ((True, "tree"), (False, "tree"), (False, "torch")):
        if overlaps:
            engine = OverlappingEngine(attention=attention, pad_tokens=NUM_TOKENS)
        else:
            engine = Engine(
                build("llama", layers=1), max_sessions=4, max_context=64, attention=attention, pad_tokens=NUM_TOKENS
            )
        if attention == "tree":
            choosing(engine)
        bench = LateBench(engine) if isinstance(engine, OverlappingEngine) else Bench(engine)
        sessions = [
            bench.open(str(index), random_line(5 + 2 * index, seed=index), 3, sampling=kind)
            for index, kind in enumerate(KINDS[1:3])
        ]
        bench.run()
        written.append([session.token_ids for session in sessions])
        assert engine.path == ("graph+choice" if attention == "tree" else "eager")
        if isinstance(engine, OverlappingEngine):
            assert ("launch", "launch") in pairwise(each.split()[0] for each in engine.order)
        if not overlaps:
            monkeypatch.setattr(fused, "problem", lambda device: "none here")
    assert written[0] == written[1] == written[2]
