"""A world in which the whole core runs: drafter, coordinator and verifier, four links, and a schedule drawn by lot.

`World(seed).run()` replays a schedule. Links are first in, first out, as late as the schedule likes, and now and then
say something again; between links every order occurs. Workers begin and end their forward passes as separate events.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from outrider.core.coordinate.drafter_state import DrafterState
from outrider.core.coordinate.session import DrafterLost, Emit, Session, VerdictOutcome
from outrider.core.protocol.messages import (
    Commitment,
    DraftWindow,
    EndDrafts,
    FinishReason,
    TokenOrigin,
    Verdict,
    VerifyFinished,
)

from .drafters import DRAFT_MS, Babbler, HonestDrafter, break_window
from .link import Closed, Link
from .scenario import ACTORS, Conduct, Scenario, draw_scenario
from .verifier import VERIFY_MS, CheckedVerifier, paths

EVENTS_PER_TOKEN_MAX = 400
"""A schedule with more events than this for each token of its line runs in circles. The slowest ones take a quarter."""

CALL_OFF_RATE = 0.1
"""How often a round is composed and then does not take place, for want of room."""


class World:
    """One session from its opening to its end, with every promise checked on the way."""

    def __init__(self, seed: int, scenario: Scenario | None = None) -> None:
        self.rng = Random(seed)
        self.scenario = scenario = scenario or draw_scenario(self.rng)
        drafting = scenario.conduct is not Conduct.ABSENT
        self.coordinator = Session(
            scenario.prompt,
            vocab_size=scenario.target.vocab_size,
            max_run_ahead=scenario.max_run_ahead,
            drafting=drafting,
        )
        self.verify_open = replace(scenario.opening(), expect_drafts=drafting, prediction_token_ids=scenario.prediction)
        self.open_verifier()
        self.drafter: HonestDrafter | Babbler | None = None
        if drafting:
            self.drafter = (Babbler if scenario.conduct is Conduct.BABBLING else HonestDrafter)(scenario, self.rng)
        self.links = {name: Link() for name in ACTORS if "->" in name}
        self.emitted: list[int] = []
        self.origins: list[TokenOrigin] = []
        self.finish_reasons: list[FinishReason] = []
        self.num_events = 0
        self._slip_due = False
        self._broken: DraftWindow | None = None
        self._verifying = True
        self._num_rollbacks = 0
        self._drafts_ended = False
        self._drafter_closed = False
        self._num_drafted_nodes = 0
        self._num_windows = 0
        self._last_window_id = 0

    def open_verifier(self) -> None:
        """A verifier at the end of the line of `verify_open`."""
        self._worker = CheckedVerifier(self.scenario, self.verify_open)
        self.verifier = self._worker.state
        self._arrived: list[DraftWindow | EndDrafts] = []
        """What came while a step ran: they wait for its end, as one thread does both."""

    def run(self) -> None:
        """Runs to the end, delivers what is still under way, and checks everything."""
        while self.coordinator.finish_reason is None:
            self.step()
        self.drafter = None
        self._verifying = False
        while self._ready():
            self.step()
        self._check_end()

    def step(self) -> None:
        """One event."""
        ready = self._ready()
        assert ready, "deadlock: nothing to deliver, nobody to step"
        self.num_events += 1
        assert self.num_events <= EVENTS_PER_TOKEN_MAX * self.scenario.max_length, "no end in sight"
        if self.num_events == self.scenario.accident_at:
            self._accident()
        speeds = self.scenario.speeds
        actor = self.rng.choices(ready, [speeds[name] for name in ready])[0]
        if actor == "drafter":
            self._draft()
        elif actor == "verifier":
            self._verify()
        else:
            self._deliver(actor)
        self._check_credit()

    def settle(self) -> None:
        """Ends the verifier's pass and delivers everything that has been drafted or decided."""
        if self._worker.step is not None and self._verifying:
            self._verify()
        self._send_drafted(self.drafter.flush() if self.drafter else None)
        while names := [name for name, link in self.links.items() if link.queue]:
            self._deliver(self.rng.choice(names))
        _ = self.verifier.candidates  # takes back what a round that was called off has looked up

    def _ready(self) -> list[str]:
        ready = [name for name, link in self.links.items() if link.queue]
        if self._verifying:
            ready.append("verifier")
        if self.drafter is not None and self.drafter.can_step():
            ready.append("drafter")
        return ready

    def _accident(self) -> None:
        if self.scenario.conduct is Conduct.MORTAL and self.drafter is not None:
            self.drafter = None
            self._give_up_drafter(self.coordinator.on_drafter_lost("it died"))
        self._slip_due = self.scenario.conduct is Conduct.SLIPPING

    def _draft(self) -> None:
        if self.drafter is not None:
            self._send_drafted(self.drafter.step())

    def _send_drafted(self, window: DraftWindow | None) -> None:
        if window is None:
            return
        if self._slip_due:
            self._slip_due = False
            window = self._broken = break_window(window, self.rng)
        self.links["drafter->coordinator"].queue.append(window)

    def _verify(self) -> None:
        if self._worker.step is None:
            if self.rng.random() < CALL_OFF_RATE:
                self._worker.call_off(self.num_events)
            else:
                self._worker.begin(self.num_events)
            return
        verdict, finished = self._worker.end(self.num_events)
        to_coordinator = self.links["verifier->coordinator"].queue
        to_coordinator.append(verdict)
        if finished is not None:
            self._verifying = False
            to_coordinator.append(finished)
        for message in self._arrived:
            self._tell_verifier(message)
        self._arrived.clear()

    def _deliver(self, name: str) -> None:
        message = self.links[name].take(self.rng, self.scenario.repeat_rate)
        match message:
            case DraftWindow() if name == "drafter->coordinator":
                self._deliver_drafted(message)
            case DraftWindow() | EndDrafts():
                if self._worker.step is None:
                    self._tell_verifier(message)
                else:
                    self._arrived.append(message)
            case Commitment():
                if self.drafter is not None:
                    self.drafter.on_commitment(message)
            case Verdict():
                self._on_verdict(self.coordinator.on_verdict(message))
            case VerifyFinished():
                self._finish(message.reason)
            case Closed():
                self.drafter = None
                assert self.coordinator.on_drafter_lost("its stream was closed") is None

    def _tell_verifier(self, message: DraftWindow | EndDrafts) -> None:
        if isinstance(message, EndDrafts):
            self._worker.end_drafts()
        else:
            self._worker.graft(message, self.num_events)

    def _deliver_drafted(self, window: DraftWindow) -> None:
        heard = self._drafter_heard()
        outcome = self.coordinator.on_drafted(window)
        assert heard or outcome is None, "a drafter that is gone was listened to"
        self._on_drafted(outcome)
        if heard and window is self._broken:
            assert self.coordinator.drafter is DrafterState.LOST, "a breach of the protocol passed"
        if self._drafter_heard() and window.first_id > self._last_window_id:
            self._last_window_id = window.first_id
            self._num_drafted_nodes += len(window)
            self._num_windows += 1

    def _drafter_heard(self) -> bool:
        return self.coordinator.hears_drafter

    def _on_drafted(self, outcome: DraftWindow | DrafterLost | None) -> None:
        if isinstance(outcome, DraftWindow):
            assert not self.finish_reasons, "a window after the end"
            assert not self._drafts_ended
            self.links["coordinator->verifier"].queue.append(outcome)
        else:
            self._give_up_drafter(outcome)

    def _give_up_drafter(self, lost: DrafterLost | None) -> None:
        if lost is None:
            return
        assert not self.finish_reasons, "a loss after the end"
        assert isinstance(lost, EndDrafts)
        assert not self._drafts_ended
        self._drafts_ended = True
        self.links["coordinator->verifier"].queue.append(lost)
        self._close_drafter()

    def _close_drafter(self) -> None:
        assert not self._drafter_closed
        self._drafter_closed = True
        self.links["coordinator->drafter"].queue.append(Closed())

    def _on_verdict(self, outcome: VerdictOutcome | None) -> None:
        if outcome is None:
            return
        assert not self.finish_reasons, "an outcome after the end"
        if outcome.commitment is not None:
            assert not self._drafter_closed
            assert outcome.commitment.token_ids
            self.links["coordinator->drafter"].queue.append(outcome.commitment)
        self._emit(outcome.emit)
        stop_at = self.scenario.stop_string_at
        if stop_at is not None and len(self.emitted) >= stop_at:
            self._finish(FinishReason.STOP_STRING)

    def _finish(self, reason: FinishReason) -> None:
        is_first = self.coordinator.finish_reason is None
        self.coordinator.on_stopped(reason)
        if is_first:
            self.finish_reasons.append(reason)
            if self.coordinator.drafter.is_feeding:
                self._close_drafter()

    def _emit(self, emit: Emit) -> None:
        assert emit.position == len(self.scenario.prompt) + len(self.emitted), "a gap or a repetition"
        assert len(emit.origins) == len(emit.token_ids)
        assert emit.num_accepted == emit.origins.count(TokenOrigin.ACCEPTED) <= emit.num_draft_tokens
        self.emitted.extend(emit.token_ids)
        self.origins.extend(emit.origins)
        self._num_rollbacks += emit.rolled_back

    def _check_credit(self) -> None:
        credit = self.scenario.max_run_ahead
        assert self._worker.sent.num_live <= credit
        if self.coordinator.drafter.is_feeding:
            assert self.coordinator.tree.num_live <= credit
        if isinstance(self.drafter, HonestDrafter):
            assert self.drafter.session.tree.num_live <= credit
            assert self.drafter.session.num_sent_live <= self.drafter.session.tree.num_live

    def _check_end(self) -> None:
        scenario, coordinator = self.scenario, self.coordinator
        expected, reason = scenario.expected()
        if self.finish_reasons == [FinishReason.STOP_STRING]:
            assert self.emitted == expected[: len(self.emitted)]
        else:
            assert self.emitted == expected
            assert self.finish_reasons == [reason]
            assert self.verifier.line.token_ids == coordinator.line.token_ids
        assert coordinator.line.token_ids == scenario.prompt + self.emitted
        assert self.verifier.line.token_ids[: len(coordinator.line)] == coordinator.line.token_ids
        assert coordinator.line.num_generated_tokens == len(self.emitted)
        for tree in (coordinator.tree, self.verifier.tree):
            assert tree.num_live == len(paths(tree))
            if scenario.conduct is not Conduct.BABBLING:
                assert all(node.position < scenario.max_length for node in tree.live_nodes())
        self._check_drafter()
        self._check_statistics()

    def _check_drafter(self) -> None:
        if self.scenario.conduct is Conduct.FAITHFUL:
            assert self.coordinator.drafter is DrafterState.ACTIVE
            assert self._drafter_closed
        assert self._drafter_closed == (self.scenario.conduct is not Conduct.ABSENT)
        assert self._drafts_ended == (self.coordinator.drafter is DrafterState.LOST)
        assert bool(self.coordinator.mode_reason) == self._drafts_ended

    def _check_statistics(self) -> None:
        found = self.coordinator.statistics
        num_next = len(self.origins) - self.origins.count(TokenOrigin.ACCEPTED)
        assert found.num_committed_tokens == len(self.emitted)
        assert found.num_accepted_prompt_lookup_tokens <= found.num_prompt_lookup_tokens <= found.num_draft_tokens
        assert found.num_accepted_prompt_lookup_tokens <= found.num_accepted_tokens
        assert found.num_accepted_tokens == self.origins.count(TokenOrigin.ACCEPTED) <= found.num_draft_tokens
        assert found.num_rounds - 1 <= num_next <= found.num_rounds
        assert found.num_rollbacks == self._num_rollbacks
        assert len(found.drafted_by_round) == len(found.accepted_by_round) == found.num_rounds
        assert sum(found.drafted_by_round) == found.num_draft_tokens
        assert sum(found.accepted_by_round) == found.num_accepted_tokens
        assert sum(found.acceptance_histogram) == found.num_rounds
        assert sum(i * n for i, n in enumerate(found.acceptance_histogram)) == found.num_accepted_tokens
        assert found.acceptance_length == found.num_committed_tokens / found.num_rounds
        assert found.verify_ms == VERIFY_MS * found.num_rounds
        if self.scenario.conduct is not Conduct.BABBLING:
            assert found.num_drafted_nodes == self._num_drafted_nodes
            assert found.draft_ms == DRAFT_MS * self._num_windows
        assert found.num_stale_nodes <= 2 * found.num_drafted_nodes
