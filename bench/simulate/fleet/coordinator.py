"""A coordinator of a fleet: the core's sessions and its rules of placement, and one thread that has to read it all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial

from bench.simulate.clock import Clock
from bench.simulate.fleet.completion import Completion
from bench.simulate.fleet.settings import Durations
from bench.simulate.fleet.standing import Standing
from bench.simulate.fleet.worker import Told, Worker
from bench.simulate.oracle import OracleText
from bench.simulate.workers import VirtualDrafter, VirtualVerifier
from coordinator.config import CoordinatorConfig
from coordinator.generation import SPARE_DRAFTERS
from outrider.core.coordinate.drafter_bandit import DrafterBandit
from outrider.core.coordinate.drafter_choice import DrafterChoice, DrafterDemand, choose
from outrider.core.coordinate.placement import place
from outrider.core.coordinate.session import DrafterLost, OpenDrafter, Session
from outrider.core.estimate.speculation_gate import SpeculationGate
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import DraftOpen, DraftWindow, EndDrafts, Verdict, VerifyFinished, VerifyOpen

_CONFIG = CoordinatorConfig.model_fields
MAX_RUN_AHEAD: int = _CONFIG["max_run_ahead"].default
MAX_DRAFT_TOKENS: int = _CONFIG["max_draft_tokens"].default
TREE_WIDTH: int = _CONFIG["tree_width"].default


class Coordinator:
    """Reads one message after another: each takes its time, and the next one waits."""

    def __init__(
        self,
        clock: Clock,
        durations: Durations,
        verifiers: Sequence[Worker[VirtualVerifier]],
        drafters: Sequence[Worker[VirtualDrafter]],
        rng: random.Random,
        *,
        adaptive: bool,
    ) -> None:
        self._rng = rng
        self._clock, self._durations = clock, durations
        self._delay, self._event_seconds = durations.delay_ms / 1000.0, durations.event_ms / 1000.0
        self.verifiers = [Standing(worker, clock) for worker in verifiers]
        self.drafters = [Standing(worker, clock) for worker in drafters]
        self.completions: dict[int, Completion] = {}
        """Those that run."""
        self.on_end: Callable[[Completion], None] = lambda completion: None
        """Is told of each that has its last token."""
        self.busy_seconds = 0.0
        """Processor time so far."""
        self.num_undrafted = 0
        """Completions that began without a drafter, none being fit."""
        self._bandit = DrafterBandit()
        self._gate = SpeculationGate(adaptive=adaptive)
        self._free_at = 0.0

    def ask(self, index: int, text: OracleText) -> None:
        """A client asks for an answer."""
        session = Session(
            text.prompt,
            vocab_size=text.vocab_size,
            max_run_ahead=MAX_RUN_AHEAD,
            drafting=bool(self.drafters),
            pause_reason=self._gate.reason,
            num_spare_drafters=SPARE_DRAFTERS,
        )
        completion = self.completions[index] = Completion(index, text, session, self._clock.now)
        if self.drafters:
            completion.is_counted = True
            self._gate.begin(greedy=True)
        self._spend(self._event_seconds, partial(self._open, completion))

    def hear_reports(self) -> None:
        """All workers tell their load."""
        for standing in (*self.verifiers, *self.drafters):
            if standing.is_serving:
                standing.report(self._hear, self._durations.report_ms / 1000.0)

    def cease(self, name: str, handover_seconds: float = 0.0) -> None:
        """The worker of that name takes no more sessions; those it has go on elsewhere, after `handover_seconds`."""
        for standing in self.verifiers:
            if standing.worker.name == name:
                _retire(standing)
                self._clock.after(handover_seconds, partial(self._leave_verifier, standing))
        for standing in self.drafters:
            if standing.worker.name == name:
                _retire(standing)
                if not handover_seconds:  # a drafter that drains is left by each session at its end
                    self._abandon_drafter(standing)

    def _leave_verifier(self, standing: Standing[VirtualVerifier]) -> None:
        for index in [*standing.seats]:
            self._spend(self._event_seconds, partial(self._move, self.completions[index]))

    def _abandon_drafter(self, standing: Standing[VirtualDrafter]) -> None:
        for index in [*standing.seats]:
            self._spend(self._event_seconds, partial(self._lose_drafter, self.completions[index]))

    def _hear(self, seconds: float, happen: Callable[[], None]) -> None:
        """A message is on its way here, and takes `seconds` to be read."""
        self._clock.after(self._delay, partial(self._spend, seconds, happen))

    def _spend(self, seconds: float, happen: Callable[[], None]) -> None:
        """Has it happen when the thread has come to it and has spent `seconds` on it."""
        self._free_at = max(self._free_at, self._clock.now) + seconds
        self.busy_seconds += seconds
        self._clock.at(self._free_at, happen)

    def _send(self, happen: Callable[[], None]) -> None:
        """A message is on its way to a worker."""
        self._clock.after(self._delay, happen)

    def _open(self, completion: Completion) -> None:
        session = completion.session
        found = [each for each in self.verifiers if each.is_serving and each.worker.name not in completion.avoided]
        if not found:
            completion.avoided.clear()
            found = [each for each in self.verifiers if each.is_serving]
        length = len(session.line)
        states = [each.replica_state for each in found]
        standing = found[place(states, length, completion.text.length - length, self._rng.sample)]
        listen = partial(self._hear_worker, completion, standing)
        completion.verifier = standing.take(completion.index, length, listen)
        if completion.drafter is None and session.hears_drafter:
            self._obey(completion, OpenDrafter(MAX_RUN_AHEAD, ""))
        opening = VerifyOpen(
            session_id=str(completion.index),
            token_ids=tuple(session.line.token_ids),
            num_prompt_tokens=len(completion.text.prompt),
            sampling=completion.text.sampling,
            max_length=completion.text.length,
            ignore_eos=True,
            max_draft_tokens=0 if session.is_paused or not self.drafters else MAX_DRAFT_TOKENS,
            expect_drafts=session.hears_drafter,
        )
        drafted = session.on_verifier_changed()
        self._send(partial(_open_verifier, standing.worker.device, completion.index, opening, drafted))

    def _move(self, completion: Completion) -> None:
        """The completion goes on at another verifier."""
        seat = completion.verifier
        if seat is None or completion.index not in self.completions:
            return
        completion.avoided.add(seat.standing.worker.name)
        seat.standing.leave(seat)
        self._send(partial(seat.standing.worker.device.close, completion.index))
        completion.verifier = None
        self._open(completion)

    def _lose_drafter(self, completion: Completion) -> None:
        if completion.drafter is not None and completion.index in self.completions:
            self._obey(completion, completion.session.on_drafter_lost("it is gone"))

    def _hear_worker(
        self, completion: Completion, standing: Standing[VirtualVerifier] | Standing[VirtualDrafter], message: Told
    ) -> None:
        self._hear(self._event_seconds, partial(self._on_message, completion, standing, message))

    def _on_message(
        self, completion: Completion, standing: Standing[VirtualVerifier] | Standing[VirtualDrafter], message: Told
    ) -> None:
        if completion.index not in self.completions:
            return
        if completion.verifier is not None and completion.verifier.standing is standing:
            match message:
                case Verdict():
                    self._on_verdict(completion, message)
                case VerifyFinished():
                    self._end(completion, message)
                case _:
                    self._move(completion)
        elif completion.drafter is not None and completion.drafter.standing is standing:
            session = completion.session
            match message:
                case DraftWindow():
                    self._obey(completion, session.on_drafted(message))
                case OutriderError():
                    standing.breaker.refuse(self._clock.now)
                    self._obey(completion, session.on_drafter_refused(str(message)))
                case _:
                    raise TypeError(f"a drafter said {message}")

    def _on_verdict(self, completion: Completion, verdict: Verdict) -> None:
        session, now = completion.session, self._clock.now
        outcome = session.on_verdict(verdict)
        if outcome is None:
            return
        drafter = completion.drafter
        if outcome.commitment is not None and drafter is not None:
            self._send(partial(drafter.standing.worker.device.commit, completion.index, outcome.commitment))
        completion.avoided.clear()
        is_gated = session.is_paused or session.hears_drafter
        if completion.num_tokens == len(outcome.emit.token_ids):
            completion.first_at = now
            completion.num_first_tokens = completion.num_tokens
            if completion.is_counted:
                self._gate.start()
        else:
            gap = now - completion.last_at
            completion.longest_gap = max(completion.longest_gap, gap)
            if is_gated and completion.is_counted:
                self._gate.observe(len(outcome.emit.token_ids), gap)
        completion.last_at = now
        if is_gated and self._gate.is_open == session.is_paused:
            self._turn(completion)

    def _turn(self, completion: Completion) -> None:
        """Pauses speculation, or resumes it, as the gate stands."""
        session = completion.session
        if session.is_paused:
            reopening = session.on_resumed()
            if reopening is not None:
                self._obey(completion, reopening)
        elif session.on_paused(self._gate.reason):
            self._leave_drafter(completion)
            assert completion.verifier is not None, "a verdict came from nowhere"
            self._send(partial(completion.verifier.standing.worker.device.end_drafts, completion.index))

    def _obey(self, completion: Completion, outcome: DraftWindow | DrafterLost | None) -> None:
        match outcome:
            case None:
                pass
            case DraftWindow():
                if completion.verifier is not None:
                    device = completion.verifier.standing.worker.device
                    self._send(partial(device.graft, completion.index, outcome))
            case EndDrafts():
                self._leave_drafter(completion, failed=True)
                if completion.verifier is not None:
                    self._send(partial(completion.verifier.standing.worker.device.end_drafts, completion.index))
            case OpenDrafter(credit, reason):
                self._leave_drafter(completion, failed=True)
                if not self._open_drafter(completion, credit):
                    self._obey(completion, completion.session.on_no_drafter(reason or "none is fit"))

    def _open_drafter(self, completion: Completion, credit: int) -> bool:
        """Opens the session at the drafter that is worth most to it. Returns whether there is one."""
        assert completion.verifier is not None, "a drafter is opened for a session with a verifier"
        session = completion.session
        found = [each for each in self.drafters if each.is_serving and each.worker.name not in completion.avoided]
        demand = DrafterDemand(
            num_tokens=len(session.line),
            max_length=completion.text.length,
            greedy=True,
            verify_step_ms=completion.verifier.standing.replica_state.step_ms,
        )
        choice = choose([each.as_drafter for each in found], self._bandit, demand, self._clock.now)
        if not isinstance(choice, DrafterChoice):
            self.num_undrafted += 1
            return False
        chosen, completion.trial = found[choice.place], choice.trial
        listen = partial(self._hear_worker, completion, chosen)
        completion.drafter = chosen.take(completion.index, len(session.line), listen)
        opening = DraftOpen(
            session_id=str(completion.index),
            token_ids=tuple(session.line.token_ids),
            num_prompt_tokens=len(completion.text.prompt),
            sampling=completion.text.sampling,
            max_length=completion.text.length,
            max_run_ahead=credit,
            tree_width=TREE_WIDTH,
            vocab_size=completion.text.vocab_size,
        )
        self._send(partial(_open_drafter, chosen.worker.device, completion.index, opening))
        return True

    def _leave_drafter(self, completion: Completion, *, failed: bool = False) -> None:
        seat, trial = completion.drafter, completion.trial
        if seat is None or trial is None:
            return
        completion.drafter = completion.trial = None
        if failed:
            completion.avoided.add(seat.standing.worker.name)
            trial.fail()
        else:
            statistics = completion.session.statistics
            trial.end(statistics.num_committed_tokens, statistics.num_rounds)
            seat.standing.breaker.succeed()
        seat.standing.leave(seat)
        self._send(partial(seat.standing.worker.device.close, completion.index))

    def _end(self, completion: Completion, finished: VerifyFinished) -> None:
        session, seat = completion.session, completion.verifier
        if completion.is_counted:
            self._gate.end(greedy=True, has_started=not math.isnan(completion.first_at))
        session.on_stopped(finished.reason)
        self._leave_drafter(completion)
        if seat is not None:
            seat.standing.leave(seat)
        completion.verifier = None
        del self.completions[completion.index]
        self.on_end(completion)


def _open_verifier(device: VirtualVerifier, index: int, opening: VerifyOpen, drafted: DraftWindow | None) -> None:
    device.open(index, opening)
    if drafted is not None:
        device.graft(index, drafted)
    else:
        device.wake()


def _open_drafter(device: VirtualDrafter, index: int, opening: DraftOpen) -> None:
    device.open(index, opening)
    device.wake()


def _retire(standing: Standing[VirtualVerifier] | Standing[VirtualDrafter]) -> None:
    standing.is_serving = False
    standing.known_load.cease()
