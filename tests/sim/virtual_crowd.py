"""Many sessions that share a drafter and a verifier, on a virtual clock: the services' own policies, made-up times."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from outrider.core.coordinate.session import Session
from outrider.core.draft.session import DraftEstimates, DraftSession, choose_expansions
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Verdict, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.core.schedule import batching_delay
from outrider.core.schedule.batching_delay import ReadyTime
from outrider.core.verify.selection import Selection, most_probable
from outrider.core.verify.session import VerifyEstimates, VerifySession

from .toys import TieredDraft, ToyTarget, place_after
from .virtual_pair import PROMPT, VOCAB_SIZE, Circumstances


class CrowdOutcome(NamedTuple):
    """What a run came to."""

    seconds_per_token: float
    """Of all sessions together, until the first of them ends."""
    rounds_per_step: float
    """Sessions that took part in a verify step, on average."""
    longest_gap: float
    """Most verify steps in a row that a session which was not finished took no part in."""
    token_ids: list[Sequence[int]]


class _Member:
    """One session at both workers and at the coordinator."""

    def __init__(self, given: Circumstances, index: int, drafts: DraftEstimates, verdicts: VerifyEstimates) -> None:
        self.lag = index * given.node_handling
        """Windows of one draft step arrive one after another."""
        self.target = ToyTarget(given.seed + index, VOCAB_SIZE)
        self.draft = TieredDraft(self.target, given.coverage)
        self.end = len(PROMPT) + given.num_tokens
        self.session = Session(PROMPT, vocab_size=VOCAB_SIZE, max_run_ahead=given.max_run_ahead, drafting=True)
        opening = {"session_id": "", "token_ids": PROMPT, "num_prompt_tokens": 3, "sampling": SamplingParams()}
        self.drafter = DraftSession(
            DraftOpen(
                **opening,
                max_run_ahead=given.max_run_ahead,
                tree_width=given.tree_width,
                max_length=self.end,
                vocab_size=VOCAB_SIZE,
            ),
            drafts,
        )
        self.verifier = VerifySession(
            VerifyOpen(**opening, max_length=self.end, ignore_eos=True, max_draft_tokens=given.max_draft_tokens),
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(),
            max_live_nodes=RUN_AHEAD_MAX,
            estimates=verdicts,
        )
        self.draft_inbox: list[Commitment] = []
        self.verify_inbox: list[tuple[DraftWindow, float]] = []
        self.chosen: list[Node] = []
        self.draft_seconds = 0.0
        self.last_step = 0
        self.ready_at = self.go_at = 0.0
        self.gain = 0.0
        self.stirred = True
        self.num_missed = 0

    @property
    def is_done(self) -> bool:
        return len(self.verifier.line) >= self.end


class VirtualCrowd:
    """The workers read what has arrived between their steps, as device threads do."""

    def __init__(self, circumstances: Circumstances, num_sessions: int, before: VirtualCrowd | None = None) -> None:
        """The workers know what they have learned from the sessions `before`."""
        self._given = circumstances
        self._drafts = before._drafts if before is not None else DraftEstimates()
        self._verdicts = before._verdicts if before is not None else VerifyEstimates()
        self._members = [_Member(circumstances, index, self._drafts, self._verdicts) for index in range(num_sessions)]
        self.now = 0.0
        self._drafting = self._verifying = False
        self._num_draft_steps = self._num_steps = self._num_rounds = 0
        self._longest_gap = 0
        self._alarm: object = None
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def run(self) -> CrowdOutcome:
        """Until every line has ended."""
        self._wake_drafter()
        self._wake_verifier()
        seconds_per_token = 0.0
        while not all(member.is_done for member in self._members):
            self.now, _, happen = heapq.heappop(self._events)
            happen()
            if not seconds_per_token and any(member.is_done for member in self._members):
                num_tokens = sum(len(member.verifier.line) - len(PROMPT) for member in self._members)
                seconds_per_token = self.now / num_tokens
        return CrowdOutcome(
            seconds_per_token,
            self._num_rounds / self._num_steps,
            self._longest_gap,
            [member.verifier.line.token_ids[len(PROMPT) :] for member in self._members],
        )

    def _in(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen))

    # The drafter: as draft_service/drafter.py.

    def _wake_drafter(self) -> None:
        if self._drafting:
            return
        members = sorted((member for member in self._members if not member.is_done), key=lambda each: each.last_step)
        for member in members:
            for commitment in member.draft_inbox:
                member.drafter.commit(commitment)
            member.draft_inbox.clear()
        chosen = choose_expansions([member.drafter for member in members], self._drafts.curve)
        for member, member.chosen in zip(members, chosen, strict=True):
            self._send_if_due(member)
        busy = [member for member in members if member.chosen]
        if not busy:
            return
        num_nodes = sum(len(member.chosen) for member in busy)
        seconds = self._given.draft_step(num_nodes)
        self._drafting = True
        self._num_draft_steps += 1
        self._in(seconds, partial(self._drafted, busy, num_nodes, seconds))

    def _drafted(self, busy: list[_Member], num_nodes: int, seconds: float) -> None:
        self._drafting = False
        self._drafts.curve.observe(num_nodes, seconds)
        for member in busy:
            member.last_step = self._num_draft_steps
            member.draft_seconds += seconds
            for node in member.chosen:
                member.drafter.expand(node, *member.draft.propose(place_after(member.drafter.line, node)))
            self._send_if_due(member)
        self._wake_drafter()

    def _send_if_due(self, member: _Member) -> None:
        if not member.drafter.is_window_due(self.now, idle=not member.chosen):
            return
        window = member.drafter.take_window(member.draft_seconds * 1000.0, self.now)
        if window is not None:
            member.draft_seconds = 0.0
            self._in(self._given.hop + member.lag, partial(self._relay, member, window))

    # The coordinators: as coordinator/generation.py.

    def _relay(self, member: _Member, window: DraftWindow) -> None:
        relayed = member.session.on_drafted(window)
        if relayed is not None:
            assert isinstance(relayed, DraftWindow)
            self._in(self._given.hop, partial(self._arrive, member, relayed))

    def _commit(self, member: _Member, verdict: Verdict) -> None:
        outcome = member.session.on_verdict(verdict)
        if outcome is not None and outcome.commitment is not None:
            self._in(self._given.hop, partial(self._hear, member, outcome.commitment))

    def _hear(self, member: _Member, commitment: Commitment) -> None:
        member.draft_inbox.append(commitment)
        self._wake_drafter()

    # The verifier: as verify_service/verifier.py.

    def _arrive(self, member: _Member, window: DraftWindow) -> None:
        member.verify_inbox.append((window, self.now))
        self._wake_verifier()

    def _wake_verifier(self) -> None:
        if self._verifying:
            return
        members = [member for member in self._members if not member.is_done]
        if not members:
            return
        for member in members:
            for window, arrived in member.verify_inbox:
                member.verifier.graft(window, arrived)
                member.stirred = True
            member.verify_inbox.clear()
            if member.stirred and member.go_at > self.now:
                wait = member.verifier.wait(self.now, len(members) - 1)
                member.ready_at, member.go_at = self.now + wait.expected, self.now + wait.longest
                member.gain = wait.gain
            member.stirred = False
        ready_times = [
            ReadyTime(member.ready_at if self.now < member.ready_at else member.go_at, member.gain)
            for member in members
        ]
        step = self._verdicts.curve.seconds(len(members))
        start = batching_delay.start(ready_times, self.now, step)
        if start > self.now:
            alarm = self._alarm = object()
            self._in(start - self.now, lambda: self._wake_verifier() if self._alarm is alarm else None)
            return
        self._alarm = None
        going = [
            member
            for member, ready_time in zip(members, ready_times, strict=True)
            if batching_delay.goes(ready_time, self.now, step)
        ]
        for member in members:
            member.num_missed = 0 if member in going else member.num_missed + 1
            self._longest_gap = max(self._longest_gap, member.num_missed)
        self._verify(going)

    def _verify(self, going: list[_Member]) -> None:
        selection = most_probable([member.verifier.candidates for member in going], self._verdicts.curve)
        self._verdicts.probability_min = selection.probability_min
        num_tokens = len(going) + sum(map(len, selection.nodes))
        for member, nodes in zip(going, selection.nodes, strict=True):
            member.verifier.begin(nodes, self.now)
        seconds = self._given.verify_step(num_tokens)
        self._verifying = True
        self._num_steps += 1
        self._num_rounds += len(going)
        self._in(seconds, partial(self._decided, going, selection, num_tokens, seconds))

    def _decided(self, going: list[_Member], selection: Selection, num_tokens: int, seconds: float) -> None:
        self._verifying = False
        self._verdicts.curve.observe(num_tokens, seconds)
        for member, nodes in zip(going, selection.nodes, strict=True):
            line, root = member.verifier.line, member.verifier.tree.root
            choices = [member.target.next_token(place_after(line, node)) for node in (root, *nodes)]
            decision = member.verifier.decide(nodes, choices, self.now)
            verdict = Verdict(
                position=decision.position,
                token_ids=decision.token_ids,
                num_accepted=decision.num_accepted,
                num_draft_tokens=len(nodes),
                bonus=decision.bonus,
                verify_ms=seconds * 1000.0,
                probability_min=selection.probability_min,
            )
            self._in(self._given.hop, partial(self._commit, member, verdict))
            member.ready_at = member.go_at = math.inf
            member.stirred = True
        self._wake_verifier()
