"""A verifier with a drafter of its own: on one device, or on the same cores, both work in turn.

Between the two no message passes: a window is grafted by a call, and a verdict committed by one. Sessions for which a
coordinator has a drafter elsewhere are left to that one for as long as it lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from torch import Tensor

from draft_service.drafter import Drafter
from draft_service.drafts import DraftEvent
from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.recent_answers import RecentAnswersByTenant
from outrider.core.protocol.errors import OutriderError, ProtocolViolationError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, TokenLogprobs, Verdict
from outrider.core.protocol.validation import RUN_AHEAD_MAX
from outrider.core.schedule.draft_depth import DraftDepth, Round
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.verify_step import Decided, Verification, VerifyOutcome, VerifyStep
from outrider.engine.engine import Engine
from outrider.worker.step_runner import StepRunner
from outrider.worker.stream import SessionStream
from verify_service.verifier import Verifier, VerifyStream

_log = structlog.get_logger()


class Inlet(SessionStream[DraftOpen, DraftEvent]):
    """A drafter's session whose windows end in a call."""

    def __init__(self, session: Verification[VerifyStream], vocab_size: int) -> None:
        """Opens as a coordinator would, with the line of `session` as it is by now."""
        opening, grammar = session.opening, session.key.grammar
        self.opening = DraftOpen(
            session_id=opening.session_id,
            token_ids=list(session.token_ids),
            num_prompt_tokens=opening.num_prompt_tokens,
            sampling=opening.sampling,
            max_run_ahead=RUN_AHEAD_MAX,
            tree_width=0,
            max_length=opening.max_length,
            vocab_size=vocab_size,
            cache_salt=opening.cache_salt,
        )
        self.grammar = None if grammar is None else grammar.fork()
        self.arrived = time.monotonic()
        self.has_news = False
        """Whether anything was drafted in this turn."""
        self.num_levels = 0
        """How many levels that was."""
        self._session = session

    def add(self, content: DraftEvent | OutriderError | None, started_ns: int | None = None) -> None:
        """See `SessionStream.add`."""
        if isinstance(content, DraftWindow):
            self.has_news = True
            try:
                self._session.state.graft_in_turn(content)
            except ProtocolViolationError as violation:
                content = violation
        if content is None or isinstance(content, OutriderError):
            _log.warning("a session goes on without drafts", session=self.opening.session_id, reason=str(content))

    def flush(self) -> None:
        """See `SessionStream.flush`: nothing waits."""


class DraftingVerifier(Verifier):
    """Drafts before each step, for the sessions that it decides, as many levels as pay."""

    def __init__(
        self,
        engine: Engine,
        eos_token_ids: Sequence[int],
        *,
        drafter: Drafter,
        max_queue: int = 0,
        ngram_table: Callable[[], Ngrams] | None = None,
        recent: RecentAnswersByTenant | None = None,
        policy: VerifyPolicy | None = None,
        runner: Callable[[Engine], StepRunner] = StepRunner,
    ) -> None:
        """See `Verifier`. The policy of `drafter` says that it works in turn."""
        self.drafter = drafter
        self.depth = DraftDepth()
        self._inlets: dict[VerifyStream, Inlet] = {}
        """The drafter's side of sessions."""
        self._num_tokens = 0
        """Of the latest step, if it read no prompts; else 0."""
        self._turned: float | None = None
        """When the latest turn ended, if the next one follows at once: what comes between is a turn's time, too."""
        super().__init__(
            engine,
            eos_token_ids,
            max_queue=max_queue,
            ngram_table=ngram_table,
            recent=recent,
            policy=policy,
            runner=runner,
        )

    @property
    def overlaps(self) -> bool:
        """No: a step comes after its drafts, and drafts after the step before."""
        return False

    def relearn(self) -> None:
        """See `Verifier.relearn`."""
        super().relearn()
        self.drafter.relearn()
        self.depth.foresee(self.drafter.scheduler.policy.estimates.curve, self.scheduler.policy.estimates.curve)

    def step(self) -> float | None:
        """See `Verifier.step`."""
        began = time.monotonic() if self._turned is None else self._turned
        draft_seconds, self._num_tokens = self._draft(), 0
        due = super().step()
        turned = time.monotonic()
        if self._num_tokens:
            self.depth.step_curve.observe(self._num_tokens, turned - began - draft_seconds)
        self._turned = turned if due == 0.0 else None
        return due

    def _draft(self) -> float:
        """A turn's levels. Returns how long they took, in seconds."""
        sessions = [
            seated.session
            for seated in self.admission.seated
            if seated.session.num_rounds
            and not seated.session.expect_drafts
            and seated.session.opening.max_draft_tokens
        ]
        if not sessions:
            return 0.0
        num_greedy = sum(session.opening.sampling.greedy for session in sessions)
        num_levels = self.depth.choose(num_greedy, len(sessions) - num_greedy)
        if not num_levels:
            return 0.0
        for session in sessions:
            if session.key not in self._inlets:
                inlet = self._inlets[session.key] = Inlet(session, self.runner.engine.vocab_size)
                self.drafter.open(inlet)
        reads_lines = any(each.is_prefilling for each in self.drafter.admission.seated)
        started = time.monotonic()
        num_levels = self.drafter.draft(num_levels)
        seconds = time.monotonic() - started
        if num_levels and not reads_lines:
            self.depth.observe_drafting(len(sessions), num_levels, seconds)
        for inlet in self._inlets.values():
            inlet.num_levels = num_levels if inlet.has_news else 0
            inlet.has_news = False
        return seconds

    def _settle(
        self, step: VerifyStep[VerifyStream], outcome: VerifyOutcome | None, logits: Tensor, started_ns: int
    ) -> None:
        super()._settle(step, outcome, logits, started_ns)
        if outcome is not None and not step.num_held:
            self._num_tokens = sum(1 + len(part.nodes) for part in step.parts)
        for session in [session for session in self._inlets if not self._drafts_for(session)]:
            self.drafter.close(self._inlets.pop(session))

    def _drafts_for(self, session: VerifyStream) -> bool:
        """Whether it goes on, and still has no drafter elsewhere."""
        verification = self.scheduler.sessions.get(session)
        return verification is not None and not verification.expect_drafts

    def _verdict(
        self, session: VerifyStream, decided: Decided, logprobs: Mapping[VerifyStream, list[TokenLogprobs]]
    ) -> Verdict | OutriderError:
        told, verdict, inlet = super()._verdict(session, decided, logprobs), decided.verdict, self._inlets.get(session)
        num_levels = 0
        if inlet is not None:
            num_levels, inlet.num_levels = inlet.num_levels, 0
            self.drafter.commit(
                inlet,
                Commitment(
                    verdict.position,
                    verdict.token_ids,
                    rollback=False,
                    verify_ms=verdict.verify_ms,
                    probability_min=verdict.probability_min,
                ),
            )
        if session.opening.max_draft_tokens:
            self.depth.observe(
                Round(session.opening.sampling.greedy, num_levels, verdict.num_draft_tokens, verdict.num_accepted)
            )
        return told
