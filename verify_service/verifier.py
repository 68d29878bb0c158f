"""The verifier: runs what its scheduler plans, and tells each stream what came out. Device thread only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.core.estimate.overlap import Overlap
from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.recent_answers import RecentAnswersByTenant
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import DraftWindow, Opened, TokenLogprobs, Verdict, VerifyFinished, VerifyOpen
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.step import Event
from outrider.core.schedule.verify_scheduler import VerifyScheduler
from outrider.core.schedule.verify_step import Decided, VerifyOutcome, VerifyStep
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, Ticket
from outrider.engine.transfer import tensor_on
from outrider.worker.masks import Constrained, MaskThread
from outrider.worker.step_runner import StepRunner
from outrider.worker.stream import SessionStream
from verify_service.batch import verify_job, verify_rows

VerifyEvent = Opened | Verdict | VerifyFinished
VerifyStream = SessionStream[VerifyOpen, VerifyEvent]
Settled = Event[VerifyStream, Decided | VerifyFinished | OutriderError | None]
"""What a step decided of a session."""


class Launched(NamedTuple):
    """A step that the device computes, or has computed. Times are in seconds on the monotonic clock."""

    step: VerifyStep[VerifyStream]
    ticket: Ticket
    choice: Callable[[], list[int]]
    """Waits for the target's tokens, row after row."""
    planned: float
    started: float
    """When its launch began."""
    started_ns: int
    """The same on the wall clock."""
    seconds: float
    """How long planning and launching took."""


class Verifier:
    """Steps all sessions whose next round is due in one forward pass."""

    def __init__(
        self,
        engine: Engine,
        eos_token_ids: Sequence[int],
        *,
        max_queue: int = 0,
        ngram_table: Callable[[], Ngrams] | None = None,
        recent: RecentAnswersByTenant | None = None,
        policy: VerifyPolicy | None = None,
        runner: Callable[[Engine], StepRunner] = StepRunner,
    ) -> None:
        """See `VerifyScheduler`. `runner` makes what runs the steps."""
        self.runner = runner(engine)
        policy = policy or VerifyPolicy()
        if self.overlaps:
            policy.overlap = policy.overlap or Overlap()
        self.scheduler: VerifyScheduler[VerifyStream] = VerifyScheduler(
            self.runner.memory,
            vocab_size=engine.vocab_size,
            eos_token_ids=eos_token_ids,
            step_tokens_max=STEP_TOKENS_MAX,
            max_queue=max_queue,
            ngram_table=ngram_table,
            recent=recent,
            policy=policy,
        )
        self.admission = self.scheduler.admission
        self._mask_thread = MaskThread()
        self._in_flight: deque[Launched] = deque()
        self._collected = 0.0
        """When the latest step was, on the monotonic clock."""
        self.relearn()

    @property
    def overlaps(self) -> bool:
        """Whether something else happens between a step's launch and its end."""
        return self.runner.engine.overlaps

    def relearn(self) -> None:
        """Measures the time of steps; what was learned of it is void."""
        self.scheduler.policy.estimates.restart(*self.runner.step_times())

    def open(self, session: VerifyStream) -> None:
        """Takes the session in: it begins with the next step, waits for room, or is refused then."""
        self.scheduler.open(session, session.opening, session.arrived, session.grammar)
        self.runner.on_change()

    def graft(self, session: VerifyStream, window: DraftWindow, arrived: float) -> None:
        """Adds draft nodes that arrived at `arrived`, on the monotonic clock, maybe while a step was running."""
        for _, violation in self.scheduler.graft(session, window, arrived):
            session.tell(violation)
            self.runner.on_change()

    def end_drafts(self, session: VerifyStream) -> None:
        """No drafts will come: never wait for any."""
        self.scheduler.end_drafts(session)

    def close(self, session: VerifyStream) -> None:
        """Ends the session, whether it has a slot or waits for one."""
        self.scheduler.close(session)
        self.runner.on_change()

    def step(self) -> float | None:
        """One round for each session that is due, and a chunk of the lines that are prefilled. See `Worker.step`.

        Where the engine overlaps it launches a step in one turn, and waits for the oldest one in a turn in which there
        is nothing to launch.
        """
        now = time.monotonic()
        for session, content in self.scheduler.admit(now):
            session.tell(content)
            self.runner.on_change()
        step = self.scheduler.plan(now)
        if isinstance(step, VerifyStep):
            self._launch(step, now)
            if self.overlaps:
                return 0.0  # for what has arrived meanwhile, and for a step of others
        elif not self._in_flight:
            return None if step is None else step.time - now
        if self._in_flight:
            self._collect(self._in_flight.popleft())
        return 0.0

    def _launch(self, step: VerifyStep[VerifyStream], planned: float) -> None:
        """Has the device compute a step that was planned then."""
        started, started_ns = time.monotonic(), time.time_ns()
        begun = self.runner.attempt(partial(self._begin, step), _session_ids(step))
        if begun is None:
            self._settle(step, None, torch.empty(0), started_ns)
            self.runner.observe(planned)
            return
        if self.overlaps:
            self.scheduler.launch(step)
        self._in_flight.append(Launched(step, *begun, planned, started, started_ns, time.monotonic() - planned))

    def _begin(self, step: VerifyStep[VerifyStream]) -> tuple[Ticket, Callable[[], list[int]]]:
        """Queues the forward pass, and behind it the choice of the target's tokens."""
        rows_of = [verify_rows(part) for part in step.parts]
        constrained = [
            Constrained(index, grammar, rows_of[index])
            for index, part in enumerate(step.parts)
            if (grammar := part.seated.session.key.grammar) is not None
        ]
        slots = self.runner.memory
        num_choices = 0 if constrained else self.runner.sampler.num_choices([part.seated.slot for part in step.parts])
        with self._mask_thread.beside(constrained) as masks:
            jobs = [verify_job(slots.slot(part.seated.slot), part, num_choices) for part in step.parts]
            ticket = self.runner.launch(jobs, step.num_line_tokens)
        logits, num_rows, best = ticket.output
        rows = [row for rows, num in zip(rows_of, num_rows, strict=True) if num is not None for row in rows]
        if not rows:
            return ticket, list
        return ticket, self.runner.sampler.begin_choice(logits, rows, masks.of(num_rows), best)

    def _collect(self, launched: Launched) -> None:
        """Waits for a step, settles it, and tells what it decided."""
        step = launched.step
        started = max(launched.started, self._collected)
        outcome = self.runner.attempt(partial(self._outcome, launched, started), _session_ids(step))
        started_ns = launched.started_ns + round((started - launched.started) * 1e9)
        self._settle(step, outcome, launched.ticket.output.logits, started_ns)
        if outcome is not None:
            self.scheduler.observe(outcome.seconds if self.overlaps else time.monotonic() - launched.planned)
        self.runner.observe(launched.planned)

    def _outcome(self, launched: Launched, started: float) -> VerifyOutcome:
        """What the device, which came to this step then, has found."""
        num_rows = self.runner.collect(launched.ticket).num_rows
        chosen = iter(launched.choice())
        choices = [None if num is None else list(islice(chosen, num)) for num in num_rows]
        self._collected = time.monotonic()
        return VerifyOutcome(started, self._collected - started, choices, launched.seconds)

    def _settle(
        self, step: VerifyStep[VerifyStream], outcome: VerifyOutcome | None, logits: Tensor, started_ns: int
    ) -> None:
        """Tells what a step decided that the device began then. `logits` [R, V] are those of the scored tokens."""
        settled = list(self.scheduler.settle(step, outcome, time.monotonic()))
        logprobs = self._logprobs(settled, logits)
        for session, content in settled:
            told = self._verdict(session, content, logprobs) if isinstance(content, Decided) else content
            session.add(told, started_ns)
        for session, _ in settled:  # all at once, so that one message has it all
            session.flush()

    def _logprobs(self, settled: Sequence[Settled], logits: Tensor) -> dict[VerifyStream, list[TokenLogprobs]]:
        """The log-probabilities of all verdicts that want some, brought from the device at once; if that fails, session
        by session. Those for which it fails alone are left out."""
        wanting = [
            (session, content, num_top)
            for session, content in settled
            if isinstance(content, Decided) and (num_top := session.opening.num_logprobs) is not None
        ]
        if not wanting:
            return {}
        together = self._logprobs_of(wanting, logits)
        if together is None and len(wanting) > 1:
            alone = [self._logprobs_of([each], logits) for each in wanting]
            together = {session: found for each in alone if each for session, found in each.items()}
        return together or {}

    def _logprobs_of(
        self, wanting: Sequence[tuple[VerifyStream, Decided, int]], logits: Tensor
    ) -> dict[VerifyStream, list[TokenLogprobs]] | None:
        rows = [row for _, decided, _ in wanting for row in decided.rows]
        token_ids = [token_id for _, decided, _ in wanting for token_id in decided.verdict.token_ids]
        most = max(num_top for *_, num_top in wanting)
        found = self.runner.attempt(
            lambda: self.runner.sampler.logprobs(
                logits.index_select(0, tensor_on(logits.device, rows, torch.int64)), token_ids, most
            ),
            [session.opening.session_id for session, *_ in wanting],
        )
        if found is None:
            return None
        left = iter(found)
        return {
            session: [
                TokenLogprobs(each.logprob, each.top_token_ids[:num_top], each.top_logprobs[:num_top])
                for each in islice(left, len(decided.rows))
            ]
            for session, decided, num_top in wanting
        }

    def _verdict(
        self, session: VerifyStream, decided: Decided, logprobs: Mapping[VerifyStream, list[TokenLogprobs]]
    ) -> Verdict | OutriderError:
        """The verdict with its log-probabilities, if they are wanted."""
        if session.opening.num_logprobs is None:
            return decided.verdict
        if session not in logprobs:
            return self.scheduler.fail_step(session)
        return replace(decided.verdict, logprobs=tuple(logprobs[session]))


def _session_ids(step: VerifyStep[VerifyStream]) -> Iterable[str]:
    return (part.session.opening.session_id for part in step.parts)
