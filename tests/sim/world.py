"""A world in which the whole core runs: drafter, coordinator and verifier, four links, and a schedule drawn by lot.

`World(seed).run()` replays a schedule. Links are first in, first out, as late as the schedule likes, and now and then
say something again; between links every order occurs. Workers begin and end their forward passes as separate events.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from outrider.core.coordinate.session import (
    CloseDrafter,
    Command,
    DrafterState,
    Emit,
    EndDrafts,
    Finish,
    SendToDrafter,
    SendToVerifier,
    Session,
)
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.messages import (
    Commitment,
    DraftWindow,
    FinishReason,
    TokenOrigin,
    Verdict,
    VerifyFinished,
    VerifyOpen,
)
from outrider.core.protocol.naming import Inbound
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node, SpeculationTree, path_tokens
from outrider.core.verify.selection import most_probable
from outrider.core.verify.session import VerifySession

from .drafters import DRAFT_MS, Babbler, HonestDrafter, break_window
from .link import Link
from .scenario import ACTORS, Conduct, Scenario, draw_scenario
from .toys import EOS_TOKEN_ID, place_after

EVENTS_PER_TOKEN_MAX = 400
"""A schedule with more events than this for each token of its line runs in circles. The slowest ones take a quarter."""

VERIFY_MS = 1.0
"""What every verdict says that it took."""

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
        self.verify_open = VerifyOpen(
            session_id="",
            token_ids=scenario.prompt,
            num_prompt_tokens=len(scenario.prompt),
            sampling=SamplingParams(),
            max_length=scenario.max_length,
            stop_token_ids=scenario.stop_token_ids,
            ignore_eos=scenario.ignore_eos,
            max_draft_tokens=scenario.max_draft_tokens,
            expect_drafts=drafting,
        )
        self.open_verifier(scenario.max_run_ahead)
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
        self._curve = StepCurve()
        self._verifying = True
        self._num_rollbacks = 0
        self._drafts_ended = False
        self._drafter_closed = False
        self._num_drafted_nodes = 0
        self._num_windows = 0
        self._last_window_id = 0

    def open_verifier(self, max_live_nodes: int) -> None:
        """A verifier at the end of the line of `verify_open`, and beside it the tree of what it is sent alone."""
        scenario, line = self.scenario, self.verify_open.token_ids
        self.verifier = VerifySession(
            self.verify_open,
            vocab_size=scenario.target.vocab_size,
            eos_token_ids=[EOS_TOKEN_ID],
            max_live_nodes=max_live_nodes,
            ngrams=NgramTable() if scenario.ngrams else None,
        )
        self._sent = SpeculationTree(len(line) - 1, line[-1])
        self._sent_names = Inbound(vocab_size=scenario.target.vocab_size, max_live_nodes=max_live_nodes)
        self._in_pass: list[Node] | None = None
        self._drafted: set[Node] = set()
        """What of the pass may have been sent; the rest was looked up."""
        self._arrived: list[DraftWindow] = []
        """Windows that came while the pass ran: they wait for its end, as one thread does both."""
        self._num_stale_nodes = 0

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
        if self._in_pass is not None and self._verifying:
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
            self._obey(self.coordinator.on_drafter_lost("it died"))
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
        session = self.verifier
        if self._in_pass is None:
            candidates = session.candidates
            self._drafted = set(session.tree.live_nodes())
            nodes = most_probable([candidates], self._curve).nodes[0]
            assert len(nodes) <= self.scenario.max_draft_tokens
            if self.rng.random() >= CALL_OFF_RATE:
                self._in_pass = nodes
            return
        nodes, self._in_pass = self._in_pass, None
        next_token = self.scenario.target.next_token
        places = [place_after(session.line, node) for node in (session.tree.root, *nodes)]
        assert all(place.position < self.scenario.max_length for place in places), "scored past the line's end"
        root = session.tree.root
        scored = _paths_of(root, nodes)
        prompt_lookup = [tuple(path_tokens(root, node)) for node in nodes if node not in self._drafted]
        decision = session.decide(nodes, [next_token(place) for place in places])
        assert decision.token_ids, "a round without progress"
        assert [places[row].position for row in decision.rows] == list(
            range(decision.position, decision.position + len(decision.token_ids))
        )
        decided = tuple(decision.token_ids)
        assert decision.num_accepted == sum(decided[:depth] in scored for depth in range(1, len(decided) + 1))
        assert self.scenario.ngrams or not prompt_lookup
        assert decision.num_prompt_lookup == len(prompt_lookup)
        assert decision.num_accepted_prompt_lookup == sum(path == decided[: len(path)] for path in prompt_lookup)
        to_coordinator = self.links["verifier->coordinator"].queue
        to_coordinator.append(
            Verdict(
                position=decision.position,
                token_ids=decision.token_ids,
                num_accepted=decision.num_accepted,
                num_draft_tokens=len(nodes),
                bonus=decision.bonus,
                num_stale_nodes=self._num_stale_nodes,
                verify_ms=VERIFY_MS,
                num_prompt_lookup=decision.num_prompt_lookup,
                num_accepted_prompt_lookup=decision.num_accepted_prompt_lookup,
            )
        )
        self._num_stale_nodes = 0
        self._sent.commit(decision.token_ids)
        self._check_nothing_is_left()
        for window in self._arrived:
            self._graft(window)
        self._arrived.clear()
        if decision.finish_reason is not None:
            self._verifying = False
            to_coordinator.append(VerifyFinished(decision.finish_reason))

    def _deliver(self, name: str) -> None:
        message = self.links[name].take(self.rng, self.scenario.repeat_rate)
        match message:
            case DraftWindow() if name == "drafter->coordinator":
                self._deliver_drafted(message)
            case DraftWindow():
                if self._in_pass is None:
                    self._graft(message)
                else:
                    self._arrived.append(message)
            case Commitment():
                if self.drafter is not None:
                    self.drafter.on_commitment(message)
            case Verdict():
                self._obey(self.coordinator.on_verdict(message))
            case VerifyFinished():
                self._obey(self.coordinator.on_verify_finished(message))
            case CloseDrafter():
                self.drafter = None
                assert self.coordinator.on_drafter_lost("its stream was closed") == []
            case EndDrafts():
                pass

    def _graft(self, window: DraftWindow) -> None:
        """Between two passes: the window must find what a verifier without a table would have."""
        found, expected = self.verifier.graft(window), self._sent_names.graft(self._sent, window)
        assert len(found.added) == len(expected.added)
        assert found[1:] == expected[1:]
        self._num_stale_nodes += found.num_stale
        self._check_nothing_is_left()

    def _check_nothing_is_left(self) -> None:
        assert self.verifier.tree.num_live == self._sent.num_live
        assert paths(self.verifier.tree) == paths(self._sent), "looked-up guesses outlived their round"

    def _deliver_drafted(self, window: DraftWindow) -> None:
        heard = self._drafter_heard()
        commands = self.coordinator.on_drafted(window)
        assert heard or not commands, "a drafter that is gone was listened to"
        self._obey(commands)
        if heard and window is self._broken:
            assert self.coordinator.drafter is DrafterState.LOST, "a breach of the protocol passed"
        if self._drafter_heard() and window.first_id > self._last_window_id:
            self._last_window_id = window.first_id
            self._num_drafted_nodes += len(window)
            self._num_windows += 1

    def _drafter_heard(self) -> bool:
        return self.coordinator.drafter is DrafterState.ACTIVE and self.coordinator.finish_reason is None

    def _obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert not self.finish_reasons, "a command after the end"
            match command:
                case SendToDrafter(commitment):
                    assert not self._drafter_closed
                    assert commitment.token_ids
                    self.links["coordinator->drafter"].queue.append(commitment)
                case SendToVerifier(window):
                    assert not self._drafts_ended
                    self.links["coordinator->verifier"].queue.append(window)
                case EndDrafts():
                    assert not self._drafts_ended
                    self._drafts_ended = True
                    self.links["coordinator->verifier"].queue.append(command)
                case CloseDrafter():
                    assert not self._drafter_closed
                    self._drafter_closed = True
                    self.links["coordinator->drafter"].queue.append(command)
                case Emit():
                    self._emit(command)
                case Finish(reason):
                    self.finish_reasons.append(reason)
        stop_at = self.scenario.stop_string_at
        if stop_at is not None and len(self.emitted) >= stop_at and not self.finish_reasons:
            self._obey(self.coordinator.on_stopped(FinishReason.STOP_STRING))

    def _emit(self, emit: Emit) -> None:
        assert emit.position == len(self.scenario.prompt) + len(self.emitted), "a gap or a repetition"
        assert len(emit.origins) == len(emit.token_ids)
        assert emit.num_accepted == emit.origins.count(TokenOrigin.ACCEPTED) <= emit.num_draft_tokens
        self.emitted.extend(emit.token_ids)
        self.origins.extend(emit.origins)
        self._num_rollbacks += emit.rolled_back

    def _check_credit(self) -> None:
        credit = self.scenario.max_run_ahead
        assert self._sent.num_live <= credit
        if self.coordinator.drafter is DrafterState.ACTIVE:
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
        assert bool(self.coordinator.drafter_lost_reason) == self._drafts_ended

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


def paths(tree: SpeculationTree) -> set[tuple[int, ...]]:
    """The tree's live nodes by content: the tokens from below its root to each of them."""
    return _paths_of(tree.root, tree.live_nodes())


def _paths_of(root: Node, nodes: Iterable[Node]) -> set[tuple[int, ...]]:
    path_of: dict[int, tuple[int, ...]] = {id(root): ()}
    for node in nodes:
        path_of[id(node)] = (*path_of[id(node.parent)], node.token_id)
    assert len(set(path_of.values())) == len(path_of), "two nodes for one path"
    return set(path_of.values()) - {()}
