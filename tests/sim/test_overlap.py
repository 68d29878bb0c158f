"""On a virtual clock with artificial step times: time per token is that of the overlapped schedule, not of the sum."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest

from outrider.core.drafting import DraftSession
from outrider.core.messages import DraftOpen, Verdict, VerifyOpen
from outrider.core.patience import Patience
from outrider.core.sampling import SamplingParams
from outrider.core.session import SendToDrafter, SendToVerifier, Session
from outrider.core.verifying import VerifySession

from .toys import ToyDraft, ToyTarget, place_after

VOCAB_SIZE = 50
NUM_TOKENS = 600
PROMPT = [3, 1, 4]
LINE_END = len(PROMPT) + NUM_TOKENS
RUN_AHEAD = 32


class Outcome(NamedTuple):
    """What a run on the virtual clock came to, in its seconds."""

    seconds_per_token: float
    both_busy: float
    """Share of the time in which both devices worked."""


class VirtualPair:
    """One session whose drafter needs `draft_step` per node and whose verifier needs `verify_step` per round."""

    def __init__(self, *, draft_step: float, verify_step: float, max_draft_tokens: int, accuracy: float) -> None:
        self.now = 0.0
        self.draft_step, self.verify_step = draft_step, verify_step
        self.target = ToyTarget(seed=5, vocab_size=VOCAB_SIZE)
        self.draft = ToyDraft(self.target, width=1, accuracy=accuracy)
        self.session = Session(PROMPT, vocab_size=VOCAB_SIZE, max_run_ahead=RUN_AHEAD, drafting=True)
        opening = {"session_id": "", "token_ids": PROMPT, "num_prompt_tokens": 3, "sampling": SamplingParams()}
        self.drafter = DraftSession(
            DraftOpen(**opening, max_run_ahead=RUN_AHEAD, tree_width=1, max_length=LINE_END, vocab_size=VOCAB_SIZE)
        )
        self.verifier = VerifySession(
            VerifyOpen(**opening, max_length=LINE_END, ignore_eos=True, max_draft_tokens=max_draft_tokens),
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(),
            max_live_nodes=RUN_AHEAD,
        )
        self.patience = Patience()
        self.max_draft_tokens = max_draft_tokens
        self.last_verdict = 0.0
        self.drafting_until = self.verifying_until = 0.0
        self.both_busy = 0.0
        self.go_deadline: object = None
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def run(self) -> Outcome:
        self._draft()
        self._verify()
        while len(self.session.line) < LINE_END:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        return Outcome(self.now / NUM_TOKENS, self.both_busy / self.now)

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (seconds, next(self._order), happen))

    def _draft(self) -> None:
        nodes = self.drafter.frontier(1)
        if not nodes or self.drafting_until > self.now:
            return
        self.drafting_until = self.now + self.draft_step
        self.both_busy += max(0.0, min(self.drafting_until, self.verifying_until) - self.now)

        def expanded() -> None:
            for node in nodes:
                self.drafter.expand(node, *self.draft.propose(place_after(self.drafter.line, node)))
            window = self.drafter.take_window(self.draft_step * 1000.0)
            if window is not None:
                for command in self.session.on_drafted(window):
                    assert isinstance(command, SendToVerifier)
                    self._graft(command)
            self._draft()

        self._at(self.drafting_until, expanded)

    def _graft(self, command: SendToVerifier) -> None:
        was_empty = self.verifier.tree.num_live == 0
        added = self.verifier.graft(command.window).added
        if added:
            if was_empty and self.last_verdict:
                self.patience.observe_first_draft(self.now - self.last_verdict)
            self.patience.observe_window(len({node.position for node in added}), command.window.draft_ms / 1000.0)
        if self.verifying_until <= self.now:
            self._reconsider()

    def _reconsider(self) -> None:
        ready = self.verifier.num_ready_levels
        wait = self.patience.wait(ready, self.max_draft_tokens - ready, self.now - self.last_verdict)
        deadline = self.go_deadline = object()

        def go() -> None:
            if self.go_deadline is deadline and self.verifying_until <= self.now:
                self._verify()

        self._at(self.now + wait, go)

    def _verify(self) -> None:
        nodes = self.verifier.choose()
        self.verifying_until = self.now + self.verify_step
        self.both_busy += max(0.0, min(self.drafting_until, self.verifying_until) - self.now)

        def decided() -> None:
            line, root = self.verifier.line, self.verifier.tree.root
            choices = [self.target.next_token(place_after(line, node)) for node in (root, *nodes)]
            decision = self.verifier.decide(nodes, choices)
            rejected = bool(nodes) and not decision.bonus and decision.num_accepted < len(nodes)
            self.patience.observe_round(decision.num_accepted, rejected, self.verify_step)
            if decision.late_guess is not None:
                self.patience.observe_guess(decision.late_guess)
            self.last_verdict = self.now
            verdict = Verdict(
                position=decision.position,
                token_ids=decision.token_ids,
                num_accepted=decision.num_accepted,
                num_draft_tokens=len(nodes),
                bonus=decision.bonus,
            )
            for command in self.session.on_verdict(verdict):
                if isinstance(command, SendToDrafter):
                    self.drafter.commit(command.commitment.position, command.commitment.token_ids)
            self._draft()
            self._reconsider()

        self._at(self.verifying_until, decided)


@pytest.mark.parametrize(
    ("draft_step", "verify_step", "max_draft_tokens"), [(1.0, 4.0, 3), (2.0, 8.0, 8), (1.0, 10.0, 4), (1.0, 6.0, 2)]
)
def test_with_a_perfect_draft_the_slower_device_alone_sets_the_pace(
    draft_step: float, verify_step: float, max_draft_tokens: int
) -> None:
    outcome = VirtualPair(
        draft_step=draft_step, verify_step=verify_step, max_draft_tokens=max_draft_tokens, accuracy=1.0
    ).run()
    overlapped = max(draft_step, verify_step / (max_draft_tokens + 1))
    in_turn = (max_draft_tokens * draft_step + verify_step) / (max_draft_tokens + 1)
    assert outcome.seconds_per_token == pytest.approx(overlapped, rel=0.1)
    assert outcome.seconds_per_token < 0.9 * in_turn


def test_with_an_imperfect_draft_both_devices_work_at_once() -> None:
    """Against the best lookahead of drafting and verifying in turn at the same acceptance (Leviathan et al., eq. 1)."""
    accuracy, draft_step, verify_step = 0.8, 1.0, 4.0
    outcome = VirtualPair(draft_step=draft_step, verify_step=verify_step, max_draft_tokens=8, accuracy=accuracy).run()
    in_turn = min(
        (lookahead * draft_step + verify_step) * (1 - accuracy) / (1 - accuracy ** (lookahead + 1))
        for lookahead in range(1, 9)
    )
    assert outcome.both_busy > 0.5
    assert outcome.seconds_per_token < 0.9 * in_turn
    assert outcome.seconds_per_token < verify_step


def test_a_useless_draft_costs_next_to_nothing() -> None:
    outcome = VirtualPair(draft_step=1.0, verify_step=4.0, max_draft_tokens=8, accuracy=0.0).run()
    assert outcome.seconds_per_token < 1.05 * 4.0
