"""The drafter: runs what its scheduler plans, and tells each stream what came out. Device thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby, islice

import torch

from draft_service.arrivals import Arrivals
from draft_service.batch import expansion_row
from draft_service.drafts import DraftEvent
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import Commitment, DraftOpen, Opened
from outrider.core.protocol.validation import EXPANSIONS_MAX
from outrider.core.schedule.draft_run import LEVELS_MAX, DraftRun
from outrider.core.schedule.draft_scheduler import DraftScheduler
from outrider.core.schedule.draft_step import Drafted, DraftOutcome, DraftPart, DraftStep
from outrider.core.schedule.policy import DraftPolicy
from outrider.core.schedule.step import Event, WaitUntil
from outrider.engine.compile.levels import LevelsJob
from outrider.engine.engine import STEP_TOKENS_MAX, Engine
from outrider.engine.jobs import Job
from outrider.engine.sample.sampler import Row
from outrider.worker.masks import Constrained, MaskThread
from outrider.worker.step_runner import StepRunner
from outrider.worker.stream import SessionStream

DraftStream = SessionStream[DraftOpen, DraftEvent]


class Drafter:
    """Steps all sessions that have something worth drafting in one forward pass."""

    def __init__(
        self,
        engine: Engine,
        policy: DraftPolicy | None = None,
        runner: Callable[[Engine], StepRunner] = StepRunner,
    ) -> None:
        """See `DraftScheduler`. `runner` makes what runs the steps."""
        self.runner = runner(engine)
        self.scheduler: DraftScheduler[DraftStream] = DraftScheduler(
            self.runner.memory, vocab_size=engine.vocab_size, step_tokens_max=STEP_TOKENS_MAX, policy=policy
        )
        self.admission = self.scheduler.admission
        self.arrivals = Arrivals()
        self.num_levels_max = LEVELS_MAX
        """Most levels that are drafted in a row, where the engine can do that."""
        self._mask_thread = MaskThread()
        self.relearn()

    def relearn(self) -> None:
        """Measures the time of steps; what was learned of it is void."""
        self.scheduler.policy.estimates.curve.restart(*self.runner.step_times())

    def open(self, session: DraftStream) -> None:
        """Seats the session, or refuses it."""
        self.scheduler.open(session, session.opening, session.grammar)
        self._tell(self.scheduler.admit())

    def commit(self, session: DraftStream, commitment: Commitment) -> None:
        """Moves the session's line and tree along; a rollback is the same movement."""
        self._tell(self.scheduler.commit(session, commitment, time.monotonic()))

    def finish(self, session: DraftStream) -> None:
        """No more commits will come: the session drafts on while that is worth it, then ends."""
        self.scheduler.finish(session)

    def close(self, session: DraftStream) -> None:
        """Frees the session's slot, if it still has one."""
        self.scheduler.close(session)
        self.runner.on_change()

    def step(self) -> float | None:
        """Sends what commits have made urgent, then expands the most promising nodes of all sessions.

        See `Worker.step`.
        """
        now = time.monotonic()
        self._tell(self.scheduler.admit())
        step = self._plan(now, self.num_levels_max)
        self._tell(self.scheduler.flush(now))
        if isinstance(step, DraftRun):
            self._run(step)
        elif isinstance(step, DraftStep):
            self._step(step, now)
        else:
            return None if step is None else step.time - now
        return 0.0

    def draft(self, num_levels: int) -> int:
        """In turn with a verifier: drafts up to so many levels of all sessions, and sends all of it. A step that reads
        lines counts as a level. Returns how many there were; fewer where nothing more is worth it."""
        self._tell(self.scheduler.admit())
        num_left = num_levels
        while num_left > 0:
            now = time.monotonic()
            step = self._plan(now, num_left)
            if isinstance(step, DraftRun):
                num_left -= self._run(step)
            elif isinstance(step, DraftStep):
                self._step(step, now)
                num_left -= 1
            else:
                break
        self._tell(self.scheduler.send_all(time.monotonic()))
        return num_levels - num_left

    def _plan(self, now: float, num_levels: int) -> DraftStep[DraftStream] | DraftRun[DraftStream] | WaitUntil | None:
        num_levels_max = num_levels if self.runner.runs_levels else 1
        return self.scheduler.plan(now, num_levels_max, expands_lines=self.runner.engine.expands_lines)

    def _step(self, step: DraftStep[DraftStream], planned: float) -> None:
        session_ids = [part.session.opening.session_id for part in step.parts]
        started = time.monotonic()
        outcome = self.runner.attempt(partial(self._compute, step), session_ids)
        self._tell(self.scheduler.settle(step, outcome, time.monotonic()))
        self.scheduler.observe(time.monotonic() - started)
        self.runner.observe(planned)

    def _run(self, run: DraftRun[DraftStream]) -> int:
        """Burst after burst, until there is nothing to expand or a command waits, which may have made it all void.
        Returns how many levels there were."""
        session_ids = [part.session.opening.session_id for part in run.parts]
        started = time.monotonic()
        num_levels = self.runner.attempt(partial(self._draft_levels, run), session_ids)
        if num_levels is None or not (num_levels or self.arrivals.has_news):
            levels = None if num_levels is None else []
            self._tell(self.scheduler.settle_run(run, levels, started, time.monotonic()))
        return num_levels or 0

    def _draft_levels(self, run: DraftRun[DraftStream]) -> int:
        """How many levels there were."""
        slots, curve = self.runner.memory, self.scheduler.policy.estimates.curve
        tables = self.runner.sampler.tables([part.slot for part in run.parts])
        if tables is None:
            return 0
        jobs = [
            LevelsJob(
                slots.slot(part.slot),
                part.session.token_ids,
                part.outlook,
                part.session.opening.vocab_size,
                part.num_nodes_max,
            )
            for part in run.parts
        ]
        level_seconds = [curve.seconds(num) for num in range(1, max(EXPANSIONS_MAX, len(jobs)) + 1)]
        num_levels, started = 0, time.monotonic()
        interruption = self.arrivals.interruption(run.parts[0].session.key if len(jobs) == 1 else None)
        with self.runner.engine.level_loop(jobs, tables, level_seconds, interruption) as loop:
            while loop is not None and num_levels < run.num_levels_max:
                output = loop.draft(run.burst(started, run.num_levels_max - num_levels))
                if not output.levels:
                    break
                num_levels += len(output.levels)
                run.grow(output.expansions)
                events = self.scheduler.settle_run(run, output.levels, started, time.monotonic())
                ended = time.monotonic()
                self.scheduler.observe(ended - started)
                self.runner.observe_levels(started, output.levels, len(jobs))
                started = ended
                self._tell(events)  # last: whoever writes them out waits for the interpreter that the levels let go
                if self.arrivals.has_news:
                    break
        return num_levels

    def _compute(self, step: DraftStep[DraftStream]) -> DraftOutcome:
        """One forward pass, and what the draft model proposes below each node."""
        slots, sampler, vocab_size = self.runner.memory, self.runner.sampler, self.runner.engine.vocab_size
        constrained = [
            Constrained(index, grammar, _own_rows(part))
            for index, part in enumerate(step.parts)
            if (grammar := part.session.key.grammar) is not None and not grammar.is_lost
        ]
        mask_token_id = self.scheduler.policy.mask_token_id
        num_choices = 0
        if not constrained and mask_token_id is None:
            width = max(part.session.state.width for part in step.parts)
            num_choices = sampler.num_choices([part.slot for part in step.parts], width)
        jobs = [
            Job(slots.slot(part.slot), part.session.token_ids, *part.subtree, num_choices=num_choices)
            for part in step.parts
        ]
        with self._mask_thread.beside(constrained) as masks:
            ticket = self.runner.launch(jobs, step.num_line_tokens)
        output = ticket.output
        complete = [part for part, num_rows in zip(step.parts, output.num_rows, strict=True) if num_rows is not None]
        rows: list[Row] = []
        if mask_token_id is not None:
            output.logits[:, mask_token_id] = -torch.inf
        for part in complete:
            if part.session.opening.vocab_size < vocab_size:  # the target's vocabulary may be padded less
                output.logits[len(rows) : len(rows) + len(part.nodes), part.session.opening.vocab_size :] = -torch.inf
            rows += _own_rows(part)
            rows += _mask_rows(part)
        width = max((part.session.state.width for part in complete), default=0)
        allowed = masks.of(output.num_rows)
        proposals = zip(*sampler.propose(output.logits, rows, width, allowed, output.best), strict=True)
        self.runner.collect(ticket)
        return [None if num_rows is None else list(islice(proposals, num_rows)) for num_rows in output.num_rows]

    def _tell(self, events: Iterable[Event[DraftStream, Opened | Drafted | OutriderError | None]]) -> None:
        told = list(events)
        for session, content in told:
            if isinstance(content, Drafted):
                session.add(content.window, time.time_ns() - round((time.monotonic() - content.since) * 1e9))
            else:
                session.add(content)
                self.runner.on_change()
        for session, _ in told:  # all at once, so that one message has it all
            session.flush()


def _own_rows(part: DraftPart[DraftStream]) -> list[Row]:
    num_nodes = len(part.nodes) - part.subtree.num_masks
    return [expansion_row(part.slot, part.session.state, node) for node in part.nodes[:num_nodes]]


def _mask_rows(part: DraftPart[DraftStream]) -> list[Row]:
    """Of chains of mask tokens, which stand together. What a grammar allows there is not known yet."""
    num_nodes = len(part.nodes) - part.subtree.num_masks
    return [
        expansion_row(part.slot, part.session.state, node, num_masks)
        for node, chain in groupby(part.nodes[num_nodes:])
        for num_masks, _ in enumerate(chain, 1)
    ]
