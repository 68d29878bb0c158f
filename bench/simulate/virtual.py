"""A drafter and a verifier on a virtual clock: the real sessions of the core, with step times and delays as told.

One run takes milliseconds of real time, so a whole plane of acceptances, step times and delays can be mapped.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from bench.rivals.ruled import Policy
from coordinator.config import CoordinatorConfig
from outrider.core.coordinate.session import Session
from outrider.core.draft.session import DraftSession, choose_expansions
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Verdict, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.verify.selection import most_probable


class Text(Protocol):
    """What the target writes after a prompt, and what a draft guesses of it."""

    @property
    def prompt(self) -> Sequence[int]: ...

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def sampling(self) -> SamplingParams: ...

    def token(self, position: int) -> int:
        """The target's choice; beyond the end anything."""
        ...

    def propose(self, session: DraftSession, nodes: Sequence[Node]) -> Sequence[tuple[Sequence[int], Sequence[float]]]:
        """The draft's guesses below each of `nodes`, with margins, as `DraftSession.expand` takes them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long things take, in any unit."""

    draft: Callable[[int], float]
    """A draft step that expands so many nodes."""
    verify: Callable[[int], float]
    """A verify step that scores so many guesses beside the last token."""
    delay: float = 0.0
    """One way, between drafter and verifier."""
    pause: float = 0.0
    """What a drafter does between two steps."""
    rest: float = 0.0
    """What a verifier does between a verdict and the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A coordinator's settings; what is not said is what a coordinator does by itself."""

    tree_width: int = CoordinatorConfig.model_fields["tree_width"].default
    run_ahead: int = CoordinatorConfig.model_fields["max_run_ahead"].default
    max_draft_tokens: int = CoordinatorConfig.model_fields["max_draft_tokens"].default


class Outcome(NamedTuple):
    """What a run came to."""

    time_per_token: float
    """In the unit of the times."""
    overlap: float
    """Share of the time in which both devices worked."""
    acceptance_length: float
    """Tokens per round."""


class VirtualPair:
    """One session. Time starts when the prompt has been read."""

    def __init__(
        self,
        text: Text,
        times: Times,
        speculation: Speculation,
        policy: Policy,
        ngrams: NgramTable | None = None,
    ) -> None:
        """With an n-gram table, empty, for a verifier that shall have one, where the policy does not do without."""
        self._text, self._times = text, times
        opening = {
            "session_id": "",
            "token_ids": text.prompt,
            "num_prompt_tokens": len(text.prompt),
            "sampling": text.sampling,
        }
        self._session = Session(
            text.prompt, vocab_size=text.vocab_size, max_run_ahead=speculation.run_ahead, drafting=True
        )
        self._draft_estimates, self._verify_estimates = policy.draft_estimates, policy.verify_estimates
        self._drafter = policy.draft_session(
            DraftOpen(
                **opening,
                max_run_ahead=speculation.run_ahead,
                tree_width=speculation.tree_width,
                max_length=text.length,
                vocab_size=text.vocab_size,
            ),
            self._draft_estimates,
        )
        self._verifier = policy.verify_session(
            VerifyOpen(
                **opening, max_length=text.length, ignore_eos=True, max_draft_tokens=speculation.max_draft_tokens
            ),
            vocab_size=text.vocab_size,
            eos_token_ids=(),
            max_live_nodes=speculation.run_ahead,
            estimates=self._verify_estimates,
            ngrams=ngrams,
        )
        self._now = 0.0
        self._drafting_until = self._verifying_until = 0.0
        self._both = self._unsent_step = 0.0
        self._num_rounds = 0
        self._is_drafting = self._is_verifying = self._is_stepping = False
        self._arrived: list[tuple[DraftWindow, float]] = []
        """Windows that came while a step of the verifier ran, and when."""
        self._asked: object = None
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def run(self) -> Outcome:
        """Runs to the end of the line."""
        self._draft()
        self._consider()
        while len(self._verifier.line) < self._text.length:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        num_tokens = self._text.length - len(self._text.prompt)
        return Outcome(self._now / num_tokens, self._both / self._now, num_tokens / self._num_rounds)

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), happen))

    def _draft(self) -> None:
        if self._is_drafting:
            return
        [nodes] = choose_expansions([self._drafter], self._draft_estimates.curve)
        self._send(idle=not nodes)
        if not nodes:
            return
        step = self._times.draft(len(nodes))
        proposals = self._text.propose(self._drafter, nodes)
        self._is_drafting = True
        self._drafting_until = self._now + step
        self._both += max(0.0, min(self._drafting_until, self._verifying_until) - self._now)

        def expanded() -> None:
            self._draft_estimates.curve.observe(len(nodes), step)
            self._unsent_step += step
            for node, (token_ids, margins) in zip(nodes, proposals, strict=True):
                self._drafter.expand(node, token_ids, margins)
            self._send(idle=False)
            self._after(self._times.pause, draft_on)

        def draft_on() -> None:
            self._is_drafting = False
            self._draft()

        self._after(step, expanded)

    def _send(self, *, idle: bool) -> None:
        if not self._drafter.is_window_due(self._now, idle):
            return
        window = self._drafter.take_window(self._unsent_step * 1000.0, self._now)
        self._unsent_step = 0.0
        if window is None:
            return
        relayed = self._session.on_drafted(window)
        if relayed is not None:
            assert isinstance(relayed, DraftWindow)
            self._after(self._times.delay, partial(self._graft, relayed))

    def _graft(self, window: DraftWindow) -> None:
        if self._is_stepping:
            self._arrived.append((window, self._now))
        elif self._verifier.graft(window, self._now).added:
            self._consider()

    def _consider(self) -> None:
        """As the verifier does after a round and when drafts arrive: go, or wait and then go."""
        if self._is_verifying or len(self._verifier.line) >= self._text.length:
            return
        asked = self._asked = object()

        def go() -> None:
            if self._asked is asked:
                self._verify()

        wait = self._verifier.wait(self._now).longest
        if wait > 0.0:
            self._after(wait, go)
        else:
            go()

    def _verify(self) -> None:
        self._asked = None
        self._is_verifying = self._is_stepping = True
        selection = most_probable([self._verifier.candidates], self._verify_estimates.curve)
        [nodes] = selection.nodes
        self._verifier.begin(nodes, self._now)
        step = self._times.verify(len(nodes))
        self._verifying_until = self._now + step
        self._both += max(0.0, min(self._drafting_until, self._verifying_until) - self._now)

        def decided() -> None:
            choices = [self._text.token(node.position + 1) for node in (self._verifier.tree.root, *nodes)]
            decision = self._verifier.decide(nodes, choices, self._now)
            self._is_stepping = False
            for window, arrived in self._arrived:
                self._verifier.graft(window, arrived)
            self._arrived.clear()
            self._verify_estimates.curve.observe(1 + len(nodes), step)
            self._num_rounds += 1
            verdict = Verdict(
                position=decision.position,
                token_ids=decision.token_ids,
                num_accepted=decision.num_accepted,
                num_draft_tokens=len(nodes),
                bonus=decision.bonus,
                verify_ms=step * 1000.0,
                probability_min=selection.probability_min,
            )
            outcome = self._session.on_verdict(verdict)
            if outcome is not None and outcome.commitment is not None:
                self._after(self._times.delay, partial(self._commit, outcome.commitment))
            self._after(self._times.rest, consider)

        def consider() -> None:
            self._is_verifying = False
            self._consider()

        self._after(step, decided)

    def _commit(self, commitment: Commitment) -> None:
        self._drafter.commit(commitment)
        self._draft()
