"""Rounds of sessions on an engine: what they take, and a policy in the target's place that says what is accepted.

The weights are random, and so no draft would ever be right. A round's time does not depend on it, but for the cells
that it moves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bench.gpu.clock import Clock
from bench.gpu.floor import Row
from bench.gpu.levels import NUM_LEVELS, TREE_WIDTH, level_job, level_size
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.draft_run import Burst
from outrider.engine.compile.levels import Interruption
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.processor import Row as LogitsRow
from outrider.engine.sample.sampler import Sampler

NUM_WARM_UPS = 3
"""Steps of each row that do not count: at the first, kernels are made and chosen."""

SAMPLING = SamplingParams(temperature=0.8, seed=1)

Acceptance = Callable[[int, int, int], int]
"""Given a session, the length of its line and the number of levels of its tree: how many levels are accepted."""


class Decide(NamedTuple):
    """What becomes of a step's logits."""

    num_proposed: int
    """Tokens that a drafter proposes for each row; 0: a verifier chooses one."""

    def __call__(self, sampler: Sampler, logits: Tensor, rows: Sequence[LogitsRow], best: Tensor | None) -> object:
        """The tokens of `rows`, whose logits those are; `best` is what the step chose by itself."""
        if self.num_proposed:
            return sampler.propose(logits, rows, self.num_proposed, best=best)
        return sampler.choose(logits, rows, best=best)


choose, propose = Decide(0), Decide(TREE_WIDTH)
"""As a verifier does, and as a drafter."""


def forced(rate: float, seed: int) -> Acceptance:
    """Each level is accepted with that chance if those above it are."""

    def accepted(session: int, num_line_tokens: int, num_levels: int) -> int:
        chance = random.Random(f"{seed} {session} {num_line_tokens}")
        return next((level for level in range(num_levels) if chance.random() >= rate), num_levels)

    return accepted


def most_committed(num_tokens: int) -> int:
    """Tokens that a round over so many adds to a line at most: one of each level of its tree, and the target's own."""
    return max(_depths(num_tokens - 1), default=0) + 1


class Taken(NamedTuple):
    """What a step took, in ms."""

    forward_ms: float
    """Its forward pass: from the first thing that is queued to the last logit, or to the choice that ends its graph."""
    step_ms: float
    """Until its tokens are chosen, and the host knows them."""
    num_accepted: int
    """Levels, of all sessions."""


@dataclass(slots=True)
class _Session:
    slot: Slot
    line: list[int] = field(default_factory=list)


class Rounds:
    """Sessions of one engine, which share nothing."""

    def __init__(self, engine: Engine, decide: Decide, acceptance: Acceptance, clock: Clock) -> None:
        self._engine = engine
        self._decide = decide
        self._acceptance = acceptance
        self._clock = clock
        self._sampler = Sampler(engine.vocab_size, engine.max_sessions, engine.device, tables=engine.tables)
        self._sessions: list[_Session] = []
        for _ in range(engine.max_sessions):
            slot = engine.acquire(shares=False)
            self._sampler.open(slot.index, SAMPLING, [], [])
            self._sessions.append(_Session(slot))

    @property
    def lines(self) -> list[list[int]]:
        """Of all sessions; empty where a session holds nothing."""
        return [session.line for session in self._sessions]

    def prepare(self, row: Row) -> None:
        """The row's sessions hold as much context as it says, and no others hold any."""
        for session in self._sessions[row.num_sessions :]:
            self._engine.forget(session.slot)
            session.line = []
        for number, session in enumerate(self._sessions[: row.num_sessions]):
            more = range(len(session.line), row.num_context_tokens)
            session.line = session.line[: row.num_context_tokens]
            session.line += [_token(number, position, self._engine.vocab_size) for position in more]
            while None in self._engine.step([Job(session.slot, session.line)]).num_rows:
                pass

    def step(self, row: Row) -> Taken:
        """One round of the row's sessions, each with its line's end and a tree."""
        jobs = self._jobs(row)
        depths = _depths(row.num_tokens - 1)
        places = [LogitsRow(job.slot.index, len(job.line) + depth) for job in jobs for depth in (0, *depths)]
        started = self._clock.now()
        output = self._engine.step(jobs, len(jobs))
        computed = self._clock.now()
        self._decide(self._sampler, output.logits, places, output.best)
        decided = self._clock.now()
        forward_ms, step_ms = (self._clock.ms(started, end) for end in (computed, decided))
        num_accepted = 0
        for number, (session, job) in enumerate(zip(self._sessions, jobs, strict=False)):
            num_levels = self._acceptance(number, len(session.line), max(depths, default=0))
            num_accepted += num_levels
            session.line += [job.token_ids[TREE_WIDTH * level] for level in range(num_levels)]
            session.line.append(_token(number, len(session.line), self._engine.vocab_size))
        return Taken(forward_ms, step_ms, num_accepted)

    def levels(self, row: Row) -> float | None:
        """Ms of a run of levels below the lines of the row's sessions, until the host knows what was drafted; None if
        they have to be drafted step by step."""
        engine, sessions = self._engine, self._sessions[: row.num_sessions]
        for session in sessions:
            session.slot.align(session.line[:-1])  # what the run before has drafted falls away
        engine.step([Job(session.slot, session.line) for session in sessions])
        tables = self._sampler.tables([session.slot.index for session in sessions])
        assert tables is not None
        jobs = [level_job(session.slot, session.line, engine.vocab_size) for session in sessions]
        level_seconds = [1.0] * level_size(row.num_sessions)
        started = self._clock.now()
        interruption = Interruption(torch.zeros(2, dtype=torch.int64), 0, 0)
        with engine.level_loop(jobs, tables, level_seconds, interruption) as loop:
            levels = [] if loop is None else loop.draft(Burst(NUM_LEVELS, math.inf)).levels
            ended = self._clock.now()
        return self._clock.ms(started, ended) if len(levels) == NUM_LEVELS else None

    @property
    def path(self) -> str:
        """The way that the latest step or run went."""
        return self._engine.path

    def forward(self, row: Row) -> Tensor:
        """The logits of a round whose outcome nobody looks at: it can be run again."""
        return self._engine.step(self._jobs(row), row.num_sessions).logits

    def _jobs(self, row: Row) -> list[Job]:
        """Each feeds one token of its line, and a tree."""
        num_nodes, sessions = row.num_tokens - 1, self._sessions[: row.num_sessions]
        parents = [
            TREE_WIDTH * (node // TREE_WIDTH - 1) if node >= TREE_WIDTH else LINE_END for node in range(num_nodes)
        ]
        slots = [session.slot.index for session in sessions]
        num_choices = self._sampler.num_choices(slots, self._decide.num_proposed)
        return [
            Job(
                session.slot,
                session.line,
                parents,
                [(len(session.line) + node) % self._engine.vocab_size for node in range(num_nodes)],
                range(LINE_END, num_nodes),
                num_choices=num_choices,
            )
            for session in sessions
        ]


def _depths(num_nodes: int) -> list[int]:
    """Of each node of a tree, from 1 on: a path whose nodes have a sibling without children."""
    return [node // TREE_WIDTH + 1 for node in range(num_nodes)]


def _token(session: int, position: int, vocab_size: int) -> int:
    """Of a session's text: no two sessions have the same."""
    return (31 * session + 7 * position) % vocab_size
