"""A drafter and a verifier on a virtual clock: the services' own policies, made-up step times, delays and luck."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from outrider.core.coordinate.session import Session
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.draft.session import DraftEstimates, DraftSession, choose_expansions
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Verdict, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.core.verify.selection import Selection, most_probable
from outrider.core.verify.session import VerifyEstimates, VerifySession

from .toys import TieredDraft, ToyTarget, place_after

VOCAB_SIZE = 50
PROMPT = [3, 1, 4]


def flat(seconds: float) -> Callable[[int], float]:
    """A device that takes the same time for any step."""
    return lambda num_tokens: seconds


def sloped(seconds: float, per_token: float) -> Callable[[int], float]:
    """A device that takes `seconds` for one token and `per_token` of that more for each further one."""
    return lambda num_tokens: seconds * (1.0 + per_token * (num_tokens - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a pair works under. Times are in seconds."""

    draft_step: Callable[[int], float]
    """Duration of a draft step by the number of nodes it expands."""
    verify_step: Callable[[int], float]
    """Duration of a verify step by the number of tokens in it."""
    coverage: tuple[float, ...]
    """Chance that the target's choice is among the draft's first 1, 2, ... guesses."""
    hop: float = 0.0
    """From a worker to the coordinator, or back."""
    node_handling: float = 0.0
    """What each published node costs a worker besides its steps."""
    tree_width: int = 0
    max_draft_tokens: int = 16
    max_run_ahead: int = 96
    num_tokens: int = 1200
    seed: int = 5


class Outcome(NamedTuple):
    """What a run came to."""

    seconds_per_token: float
    both_busy: float
    """Share of the time in which both devices worked."""
    draft_busy: float
    """Share of the time in which the drafter worked."""
    wait: float
    """Share of the time in which the verifier waited."""
    statistics: SpeculationStatistics
    token_ids: Sequence[int]


class VirtualPair:
    """One session. A worker reads what has arrived between its steps, as a device thread does."""

    def __init__(self, circumstances: Circumstances) -> None:
        self._given = given = circumstances
        self.now = 0.0
        self._line_end = len(PROMPT) + given.num_tokens
        self._target = ToyTarget(given.seed, VOCAB_SIZE)
        self._draft = TieredDraft(self._target, given.coverage)
        self.session = Session(PROMPT, vocab_size=VOCAB_SIZE, max_run_ahead=given.max_run_ahead, drafting=True)
        opening = {"session_id": "", "token_ids": PROMPT, "num_prompt_tokens": 3, "sampling": SamplingParams()}
        self._draft_estimates, self._verify_estimates = DraftEstimates(), VerifyEstimates()
        self.drafter = DraftSession(
            DraftOpen(
                **opening,
                max_run_ahead=given.max_run_ahead,
                tree_width=given.tree_width,
                max_length=self._line_end,
                vocab_size=VOCAB_SIZE,
            ),
            self._draft_estimates,
        )
        self.verifier = VerifySession(
            VerifyOpen(**opening, max_length=self._line_end, ignore_eos=True, max_draft_tokens=given.max_draft_tokens),
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(),
            max_live_nodes=RUN_AHEAD_MAX,
            estimates=self._verify_estimates,
        )
        self._draft_seconds = 0.0
        self._handling = 0.0
        self._last_verdict = 0.0
        self._wait = 0.0
        self._draft_busy = self._both_busy = 0.0
        self._drafting_until = self._verifying_until = 0.0
        self._drafting = self._verifying = False
        self._draft_inbox: list[Commitment] = []
        self._verify_inbox: list[tuple[DraftWindow, float]] = []
        self._go_deadline: object = None
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def run(self) -> Outcome:
        """From the prompt to the end of the line."""
        self._wake_drafter()
        self._reconsider()
        while len(self.session.line) < self._line_end:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        return Outcome(
            self.now / self._given.num_tokens,
            self._both_busy / self.now,
            self._draft_busy / self.now,
            self._wait / self.now,
            self.session.statistics,
            self.session.line.token_ids[len(PROMPT) :],
        )

    def _in(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen))

    # The drafter: as draft_service/drafter.py.

    def _wake_drafter(self) -> None:
        if self._drafting:
            return
        for commitment in self._draft_inbox:
            self.drafter.commit(commitment)
        self._draft_inbox.clear()
        nodes = choose_expansions([self.drafter], self._draft_estimates.curve)[0]
        self._send_if_due(idle=not nodes)
        if not nodes:
            return
        seconds = self._given.draft_step(len(nodes)) + self._handling
        self._handling = 0.0
        self._drafting, self._drafting_until = True, self.now + seconds
        self._draft_busy += seconds
        self._both_busy += max(0.0, min(self._drafting_until, self._verifying_until) - self.now)
        self._in(seconds, lambda: self._drafted(nodes, seconds))

    def _drafted(self, nodes: list[Node], seconds: float) -> None:
        self._drafting = False
        self._draft_estimates.curve.observe(len(nodes), seconds)
        self._draft_seconds += seconds
        for node in nodes:
            self.drafter.expand(node, *self._draft.propose(place_after(self.drafter.line, node)))
        self._send_if_due(idle=False)
        self._wake_drafter()

    def _send_if_due(self, *, idle: bool) -> None:
        if not self.drafter.is_window_due(self.now, idle):
            return
        window = self.drafter.take_window(self._draft_seconds * 1000.0, self.now)
        if window is not None:
            self._handling += self._given.node_handling * len(window)
            self._draft_seconds = 0.0
            self._in(self._given.hop, lambda: self._relay(window))

    # The coordinator: as coordinator/generation.py.

    def _relay(self, window: DraftWindow) -> None:
        relayed = self.session.on_drafted(window)
        if relayed is not None:
            assert isinstance(relayed, DraftWindow)
            self._in(self._given.hop, partial(self._arrive, relayed))

    def _commit(self, verdict: Verdict) -> None:
        outcome = self.session.on_verdict(verdict)
        if outcome is not None and outcome.commitment is not None:
            self._in(self._given.hop, partial(self._hear, outcome.commitment))

    def _hear(self, commitment: Commitment) -> None:
        self._draft_inbox.append(commitment)
        self._wake_drafter()

    # The verifier: as verify_service/verifier.py.

    def _arrive(self, window: DraftWindow) -> None:
        self._verify_inbox.append((window, self.now))
        if not self._verifying:
            self._reconsider()

    def _reconsider(self) -> None:
        handling = self._given.node_handling * sum(len(window) for window, _ in self._verify_inbox)
        for window, arrived in self._verify_inbox:
            self.verifier.graft(window, arrived)
        self._verify_inbox.clear()
        wait = self.verifier.wait(self.now).longest
        deadline = self._go_deadline = object()

        def go() -> None:
            if self._go_deadline is deadline and not self._verifying:
                self._verify()

        self._in(wait + handling, go)

    def _verify(self) -> None:
        selection = most_probable([self.verifier.candidates], self._verify_estimates.curve)
        nodes = selection.nodes[0]
        self.verifier.begin(nodes, self.now)
        seconds = self._given.verify_step(1 + len(nodes))
        self._wait += self.now - self._last_verdict
        self._verifying, self._verifying_until = True, self.now + seconds
        self._both_busy += max(0.0, min(self._drafting_until, self._verifying_until) - self.now)
        self._in(seconds, lambda: self._decided(selection, seconds))

    def _decided(self, selection: Selection, seconds: float) -> None:
        self._verifying = False
        nodes = selection.nodes[0]
        self._verify_estimates.curve.observe(1 + len(nodes), seconds)
        line, root = self.verifier.line, self.verifier.tree.root
        choices = [self._target.next_token(place_after(line, node)) for node in (root, *nodes)]
        decision = self.verifier.decide(nodes, choices, self.now)
        self._last_verdict = self.now
        verdict = Verdict(
            position=decision.position,
            token_ids=decision.token_ids,
            num_accepted=decision.num_accepted,
            num_draft_tokens=len(nodes),
            bonus=decision.bonus,
            verify_ms=seconds * 1000.0,
            probability_min=selection.probability_min,
        )
        self._in(self._given.hop, lambda: self._commit(verdict))
        if decision.finish_reason is None:
            self._reconsider()
