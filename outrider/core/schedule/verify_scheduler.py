"""The verifier's scheduler: which sessions' next rounds share a step, what each scores, and what follows from it.

A driver tells it what happens (`open`, `graft`, `end_drafts`, `close`), then asks in turn who was let
in (`admit`) and what the device is to do (`plan`); it runs the step, and tells what came out (`settle`). All times are
in seconds, by any clock that only rises.

Where a host can go on while its device computes, the driver says that a step is in flight (`launch`), tells what
happens meanwhile, and asks for a second step, over other sessions. What a step in flight computes stays as it is: what
happens to one of its sessions counts from its settling on, and nobody is preempted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Generic

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.constraint import Constraint
from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.recent_answers import RecentAnswersByTenant
from outrider.core.protocol.errors import OutriderError, ProtocolViolationError, StepFailedError
from outrider.core.protocol.messages import NOT_REPORTED, DraftWindow, Opened, VerifyFinished, VerifyOpen
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.core.schedule import batching_delay
from outrider.core.schedule.admission import Admission, Chunk, Seated
from outrider.core.schedule.in_flight import STEPS_IN_FLIGHT_MAX, InFlight
from outrider.core.schedule.memory import Memory
from outrider.core.schedule.own_guessing import OwnGuessing, are_alone
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.prefill import prefill_budget
from outrider.core.schedule.step import Event, KeyT, WaitUntil
from outrider.core.schedule.verdict import verdict_of
from outrider.core.schedule.verify_step import (
    Decided,
    HeldEvents,
    SettledStep,
    Verification,
    VerifyOutcome,
    VerifyPart,
    VerifyStep,
    nums_cells,
)
from outrider.core.verify.draft_wait import AT_ONCE
from outrider.core.verify.selection import NOTHING_BESIDE, prompts_beside
from outrider.core.verify.session import VerifySession

Decisions = Iterable[Event[KeyT, Decided | VerifyFinished | OutriderError | None]]


class VerifyScheduler(Generic[KeyT]):
    """Steps all sessions whose next round is due together, and prefills the lines of others beside them."""

    def __init__(
        self,
        memory: Memory,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        step_tokens_max: int,
        max_queue: int = 0,
        ngram_table: Callable[[], Ngrams] | None = None,
        recent: RecentAnswersByTenant | None = None,
        policy: VerifyPolicy | None = None,
    ) -> None:
        """At most `max_queue` sessions wait for room, and a step feeds at most `step_tokens_max` tokens of lines.

        `ngram_table` makes a session's n-gram table, empty; without it sessions look up nothing in their lines, and
        without `recent` nothing in other answers.
        """
        self.policy = policy or VerifyPolicy()
        self.admission: Admission[Verification[KeyT]] = Admission(memory, max_queue=max_queue)
        self._memory = memory
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._step_tokens_max = step_tokens_max
        self._ngram_table = ngram_table
        self._recent = recent
        self.sessions: dict[KeyT, Verification[KeyT]] = {}
        """Those that have not ended."""
        self._isolated: deque[Seated[Verification[KeyT]]] = deque()
        """Those that failed together and are to be tried alone."""
        self._in_flight: InFlight[KeyT] = InFlight(self.policy.overlap)
        self._settled: SettledStep | None = None
        self._own_guessing: OwnGuessing[KeyT] = OwnGuessing(self.policy)

    def open(self, key: KeyT, opening: VerifyOpen, now: float, constraint: Constraint | None = None) -> None:
        """Queues a session: by `admit` it finds room, waits for it, or is refused.

        `constraint` has followed its line so far.
        """
        state = VerifySession(
            opening,
            vocab_size=self._vocab_size,
            eos_token_ids=self._eos_token_ids,
            max_live_nodes=RUN_AHEAD_MAX,
            estimates=self.policy.estimates,
            ngram_table=self._ngram_table if self.policy.looks_up else None,
            recent=self._recent.of(opening.cache_salt) if self._recent is not None and self.policy.looks_up else None,
            constraint=constraint,
            select=self.policy.select,
        )
        self.sessions[key] = session = Verification(key, opening, state, self.policy.rounds(opening))
        self._own_guessing.begin(session)
        time_left = math.inf if opening.time_left_ms is None else opening.time_left_ms / 1000.0
        self.admission.join(session, now + time_left)

    def graft(self, key: KeyT, window: DraftWindow, now: float) -> Iterable[Event[KeyT, OutriderError]]:
        """Adds draft nodes that arrived at `now`, maybe while a step was running."""
        session = self._changeable(key, partial(self.graft, key, window, now))
        if session is None:
            return ()
        session.expect_drafts = True
        try:
            grafted = session.state.graft(window, now)
        except ProtocolViolationError as violation:
            self.close(key)
            return (Event(key, violation),)
        session.rounds.observe(session.state, grafted)
        session.num_stale_nodes += grafted.num_stale
        session.stirred = True
        return ()

    def end_drafts(self, key: KeyT) -> None:
        """No drafts will come: never waits for any."""
        if (session := self._changeable(key, partial(self.end_drafts, key))) is not None:
            session.expect_drafts = False
            session.stirred = True

    def close(self, key: KeyT) -> None:
        """Ends a session, wherever it is; does nothing if it has ended. One in flight keeps its memory for so long."""
        if (session := self.sessions.pop(key, None)) is not None:
            self._own_guessing.end(session)
            if not session.in_flight:
                self._leave(session)

    def fail_step(self, key: KeyT) -> OutriderError:
        """Ends a session for which the device fails even alone. Returns what to tell it."""
        self.close(key)
        return StepFailedError("the forward pass failed for this session; see the worker's log")

    def admit(self, now: float) -> Iterable[Event[KeyT, Opened | OutriderError]]:
        """Lets in those who wait, as far as there is room, and refuses those for whom there is none to wait in."""
        if not self.admission.waiting:
            return ()
        admitted = self.admission.admit()
        events: list[Event[KeyT, Opened | OutriderError]] = []
        for seated in admitted.seated:
            seated.session.last_verdict = now
            events.append(Event(seated.session.key, Opened(len(seated.session.opening.token_ids))))
        for queued in admitted.refused:
            self._own_guessing.end(self.sessions.pop(queued.session.key))
            events.append(Event(queued.session.key, self.admission.refusal()))
        return events

    def plan(self, now: float) -> VerifyStep[KeyT] | WaitUntil | None:
        """What to do next; None: nothing before something happens, or before a step in flight is settled."""
        in_flight = self._in_flight
        in_flight.planned(now)
        if in_flight.num_steps == STEPS_IN_FLIGHT_MAX or (in_flight.num_steps and self._isolated):
            return None
        admission = self.admission
        while self._isolated:
            seated = self._isolated.popleft()
            if seated in admission.seated:
                return self._compose(*admission.apart([seated]), self._curve, now)
        most = in_flight.group_size(admission.seated, lambda: self._curve)
        if in_flight.num_steps and most == len(admission.seated):
            return None
        deciding, prefilling = admission.apart(in_flight.others(admission.seated))
        if not deciding:
            return self._compose([], prefilling, self._curve, now) if prefilling else None
        curve, num_beside = self._curve, min(len(deciding), most) - 1
        for seated in deciding:
            if seated.session.stirred:
                seated.session.stirred = False
                self._reconsider(seated.session, now, num_beside)
        ready_times = [seated.session.ready_time(now) for seated in deciding]
        going = deciding
        if max(ready_times).ready_at > now:  # not all are ready
            seconds = curve.over(nums_cells(deciding)).seconds(len(deciding))
            start = batching_delay.start(ready_times, now, seconds)
            if start > now and not prefilling:
                return WaitUntil(start)
            going = [
                seated
                for seated, ready_time in zip(deciding, ready_times, strict=True)
                if batching_delay.goes(ready_time, now, seconds)
            ]
        if len(going) > most:
            first = sorted(going, key=lambda seated: seated.session.last_verdict)[:most]
            going = [seated for seated in going if seated in first]
        return self._compose(going, prefilling, curve, now)

    def launch(self, step: VerifyStep[KeyT]) -> None:
        """The step is in flight: anything may be called before it is settled, and those in flight are settled in the
        order of their launches. The memory counts what it takes already."""
        self._in_flight.launch(step)

    def settle(self, step: VerifyStep[KeyT], outcome: VerifyOutcome | None, now: float) -> Decisions[KeyT]:
        """What a step's outcome decides. None: it failed; then each session is tried alone, and if it was alone, ended.

        Nothing else is called between the `plan` of a step and this, unless it was launched. Ask for all events: a
        round is decided when its verdict is asked for, so that the first need not wait for the last.
        """
        self._in_flight.settled(now)
        yield from self._fail(step) if outcome is None else self._decide_all(step, outcome, now)
        for session, held in self._in_flight.land(step):
            if not self._goes_on(session):
                self._leave(session)
                continue
            for tell in held:
                yield from tell() or ()

    def observe(self, seconds: float) -> None:
        """What was settled last took so long, all that was done for it included, but what was done beside others'."""
        settled, self._settled = self._settled, None
        if settled is not None:
            settled.curve.observe(settled.num_tokens, seconds)

    def _fail(self, step: VerifyStep[KeyT]) -> Decisions[KeyT]:
        if len(step.parts) > 1:
            self._isolated.extend(part.seated for part in step.parts)
            return ()
        session = step.parts[0].session
        return (Event(session.key, self.fail_step(session.key)),) if self._goes_on(session) else ()

    def _changeable(self, key: KeyT, event: HeldEvents[KeyT]) -> Verification[KeyT] | None:
        """The session, if it has not ended. One in flight hears of `event` when its step is settled."""
        session = self.sessions.get(key)
        return None if session is None or self._in_flight.hold(session, event) else session

    def _goes_on(self, session: Verification[KeyT]) -> bool:
        return self.sessions.get(session.key) is session

    def _leave(self, session: Verification[KeyT]) -> None:
        self.admission.dismiss(session)
        if session.state.recall is not None:
            session.state.recall.end()

    @property
    def _curve(self) -> StepCurve:
        """The time of steps as they are at present."""
        for seated in self.admission.seated:
            if seated.session.expect_drafts:
                return self.policy.estimates.curve
        return self.policy.estimates.alone

    def _reconsider(self, session: Verification[KeyT], now: float, num_beside: int) -> None:
        """Sets when the session's next round is due, by what is at hand and what may come. What is due stays due."""
        if session.go_at <= now:
            return
        wait = session.rounds.wait(session.state, now, num_beside) if session.expect_drafts else AT_ONCE
        session.ready_at, session.go_at, session.gain = now + wait.expected, now + wait.longest, wait.gain

    def _compose(
        self,
        deciding: list[Seated[Verification[KeyT]]],
        prefilling: list[Seated[Verification[KeyT]]],
        curve: StepCurve,
        now: float,
    ) -> VerifyStep[KeyT] | WaitUntil | None:
        """One step for those who decide and, as far as it has time for that, those who prefill."""
        admission = self.admission
        scoring = deciding
        chunks: Sequence[Chunk[Verification[KeyT]]] = ()
        num_held: dict[Seated[Verification[KeyT]], int] = {}
        if prefilling:
            chunks = admission.assign(prefilling, self._prefill_budget(deciding, len(prefilling), curve))
            scoring = [*deciding, *(chunk.seated for chunk in chunks if chunk.completes)]
            num_held = {chunk.seated: self._memory.num_tokens(chunk.seated.slot) for chunk in chunks}
        curve = curve.over(nums_cells([*deciding, *num_held], num_held))
        num_beside = sum(chunk.num_tokens for chunk in chunks) + len(deciding) - len(scoring)
        beside = prompts_beside(curve, len(scoring), num_beside) if num_beside else NOTHING_BESIDE
        selection = self.policy.select(self._own_guessing.candidates(scoring), curve, beside)
        if scoring:
            self.policy.estimates.probability_min = selection.probability_min
        nodes = iter(selection.nodes)
        parts = [VerifyPart(seated, next(nodes), 1) for seated in deciding]
        parts += [VerifyPart(each.seated, next(nodes) if each.completes else [], each.num_tokens) for each in chunks]
        if not admission.has_room({part.seated: len(part.nodes) for part in parts}):
            if self._in_flight.num_steps:
                return None
            staying = admission.make_room({part.seated: 0 for part in parts})
            parts = [part._replace(nodes=[]) for part in parts if part.seated in staying]
            num_held = {seated: num_tokens for seated, num_tokens in num_held.items() if seated in staying}
        if not parts:
            return WaitUntil(now)
        for part in parts:
            part.seated.session.state.begin(part.nodes, now)
        return VerifyStep(parts, selection.probability_min, num_held)

    def _prefill_budget(self, deciding: list[Seated[Verification[KeyT]]], num_prefilling: int, curve: StepCurve) -> int:
        """How much of prompts fits beside those who decide, with what they would score without any."""
        curve = curve.over(nums_cells(deciding))
        num_decoding = sum(not seated.is_prefilling for seated in self.admission.seated)
        num_rows = len(deciding) or int(num_decoding > 0)
        if deciding:
            candidates = self._own_guessing.candidates(deciding)
            num_rows += sum(map(len, self.policy.select(candidates, curve, NOTHING_BESIDE).nodes))
        waiting = num_prefilling / max(num_decoding, 1)
        return prefill_budget(curve, num_rows, self._step_tokens_max, waiting)

    def _decide_all(self, step: VerifyStep[KeyT], outcome: VerifyOutcome, now: float) -> Decisions[KeyT]:
        complete = [part.seated for part, choices in zip(step.parts, outcome.choices, strict=True) if choices]
        num_rows = sum(map(len, filter(None, outcome.choices)))
        num_beside = self.admission.observe_prefill(step.num_held, complete)
        curve = self._curve.over(nums_cells((part.seated for part in step.parts), step.num_held))
        self._settled = SettledStep(curve, num_rows + num_beside)
        is_alone = not step.num_held and are_alone(part.session for part in step.parts)
        self._in_flight.observe(len(complete), num_rows, outcome.launch_seconds)
        first_row = 0
        for part, choices in zip(step.parts, outcome.choices, strict=True):
            if choices is None:
                continue
            session = part.seated.session
            if not self._goes_on(session):
                first_row += len(choices)
                continue
            scored = session.state.scored(part.nodes) if session.opening.report_scored else NOT_REPORTED
            decision = session.state.decide(part.nodes, choices, now)
            self._memory.commit(part.seated.slot, decision.token_ids)
            num_cached = self._memory.num_cached_tokens(part.seated.slot)
            verdict = verdict_of(part, decision, scored, num_cached, step, outcome)
            if is_alone:
                self._own_guessing.observe(session, len(decision.token_ids), now)
            session.last_verdict = now
            session.num_rounds += 1
            session.num_stale_nodes = 0
            session.ready_at = session.go_at = math.inf
            session.stirred = True
            yield Event(session.key, Decided(verdict, [first_row + row for row in decision.rows]))
            first_row += len(choices)
            if decision.finish_reason is not None:
                self.close(session.key)
                yield Event(session.key, VerifyFinished(decision.finish_reason))
                yield Event(session.key, None)
