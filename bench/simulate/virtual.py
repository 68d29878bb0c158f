"""A drafter and a verifier on a virtual clock: the real sessions of the core, with step times and delays as told.

One run takes milliseconds of real time, so a whole plane of acceptances, step times and delays can be mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from bench.rivals.ruled import Policy
from bench.simulate.clock import Clock
from bench.simulate.workers import Text, VirtualDrafter, VirtualVerifier, Work
from coordinator.config import CoordinatorConfig
from outrider.core.coordinate.session import Session
from outrider.core.propose.ngram import NgramTable
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import DraftOpen, DraftWindow, Verdict, VerifyFinished, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams


class Answer(Text, Protocol):
    """A text of one session."""

    @property
    def prompt(self) -> Sequence[int]: ...

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        ...

    @property
    def sampling(self) -> SamplingParams: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long things take, in any unit."""

    draft: Callable[[int], float]
    """A draft step that expands so many nodes."""
    verify: Callable[[int], float]
    """A verify step over one token and so many more."""
    delay: float = 0.0
    """From the coordinator to a worker; one way between drafter and verifier, where `report` is 0."""
    report: float = 0.0
    """From a worker to the coordinator."""
    window: float = 0.0
    """Windows of one draft step come that long after one another."""
    pause: float = 0.0
    """What a drafter does between two steps."""
    num_levels_max: int = 1
    """Most levels that a drafter's device drafts in a row; between them there is no pause."""
    message: float = 0.0
    """What a message of windows takes of the drafter's own core."""
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


class VirtualStack:
    """Sessions that share a drafter and a verifier. Time starts when their prompts have been prefilled."""

    def __init__(
        self,
        answers: Sequence[Answer],
        times: Times,
        speculation: Speculation,
        policy: Policy,
        ngram_table: Callable[[], NgramTable] | None = None,
    ) -> None:
        """`ngram_table` makes the verifier's n-gram tables, empty, where the policy does not do without."""
        self._answers, self._times = answers, times
        self.clock = Clock()
        self.work = Work(self.clock)
        self.wait = 0.0
        """How long rounds have waited for drafts and for other sessions, altogether."""
        self.verifier = VirtualVerifier(
            self.clock,
            self.work,
            answers,
            policy.verify,
            lambda num_tokens: times.verify(num_tokens - 1),
            self._on_told,
            rest=times.rest,
            ngram_table=ngram_table,
        )
        self.drafter = VirtualDrafter(
            self.clock,
            self.work,
            answers,
            policy.draft,
            times.draft,
            self._on_drafted,
            pause=times.pause,
            num_levels_max=times.num_levels_max,
            message=times.message,
        )
        self.sessions = [
            Session(each.prompt, vocab_size=each.vocab_size, max_run_ahead=speculation.run_ahead, drafting=True)
            for each in answers
        ]
        """The coordinator's."""
        self.num_committed = [0] * len(answers)
        """How many tokens the verifier has decided for each."""
        self.num_windows = self.num_messages = 0
        """How many windows the drafter has sent, and in how many messages: what it sends at one time goes in one."""
        self._last_message = -1.0
        for index, answer in enumerate(answers):
            self._open(index, answer, speculation)

    def run(self, until: Callable[[], bool]) -> None:
        """From the start until an event has made `until` true."""
        self.drafter.wake()
        self.verifier.wake()
        self.clock.run(until)

    def is_done(self, index: int) -> bool:
        """Whether the verifier has decided the whole answer."""
        answer = self._answers[index]
        return self.num_committed[index] >= answer.length - len(answer.prompt)

    def _open(self, index: int, answer: Answer, speculation: Speculation) -> None:
        opening = {
            "session_id": str(index),
            "token_ids": answer.prompt,
            "num_prompt_tokens": len(answer.prompt),
            "sampling": answer.sampling,
            "max_length": answer.length,
        }
        self.drafter.open(
            index,
            DraftOpen(
                **opening,
                max_run_ahead=speculation.run_ahead,
                tree_width=speculation.tree_width,
                vocab_size=answer.vocab_size,
            ),
        )
        self.verifier.open(
            index,
            VerifyOpen(**opening, ignore_eos=True, max_draft_tokens=speculation.max_draft_tokens, expect_drafts=True),
        )

    def _on_drafted(self, index: int, window: DraftWindow | OutriderError) -> None:
        assert isinstance(window, DraftWindow), f"memory without end refuses nobody, but: {window}"
        self.num_windows += 1
        self.num_messages += self.clock.now > self._last_message
        self._last_message = self.clock.now
        self._after(self._times.report + index * self._times.window, partial(self._relay, index, window))

    def _relay(self, index: int, window: DraftWindow) -> None:
        relayed = self.sessions[index].on_drafted(window)
        if isinstance(relayed, DraftWindow):
            self.clock.after(self._times.delay, partial(self.verifier.graft, index, relayed))

    def _on_told(self, index: int, message: Verdict | VerifyFinished | OutriderError) -> None:
        assert not isinstance(message, OutriderError), f"memory without end refuses nobody, but: {message}"
        if isinstance(message, VerifyFinished):
            return
        self.num_committed[index] += len(message.token_ids)
        self.wait += message.wait_ms / 1000.0
        self._after(self._times.report, partial(self._commit, index, message))

    def _commit(self, index: int, verdict: Verdict) -> None:
        outcome = self.sessions[index].on_verdict(verdict)
        if outcome is not None and outcome.commitment is not None:
            self.clock.after(self._times.delay, partial(self.drafter.commit, index, outcome.commitment))

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        """At once if there is nothing to wait for, as within one process."""
        if seconds:
            self.clock.after(seconds, happen)
        else:
            happen()


class VirtualPair:
    """One session."""

    def __init__(
        self,
        answer: Answer,
        times: Times,
        speculation: Speculation,
        policy: Policy,
        ngram_table: Callable[[], NgramTable] | None = None,
    ) -> None:
        """See `VirtualStack`."""
        self._num_tokens = answer.length - len(answer.prompt)
        self._stack = VirtualStack([answer], times, speculation, policy, ngram_table)

    def run(self) -> Outcome:
        """Runs to the end of the line."""
        stack = self._stack
        stack.run(lambda: stack.is_done(0))
        now, num_rounds = stack.clock.now, stack.sessions[0].statistics.num_rounds
        return Outcome(now / self._num_tokens, stack.work.both / now, self._num_tokens / num_rounds)
