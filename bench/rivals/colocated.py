"""Drafting inside the verifier's process, in turn with it: what speculation is without a second device.

The draft model is the same, run by the same `Drafter`, and rounds follow the rule of drafting in turn (`rules.InTurn`).
Between the two no message passes and nothing is encoded: a window is grafted by a call, and a verdict committed by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog

from draft_service.drafter import Drafter
from draft_service.drafts import DraftEvent
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened, TokenLogprobs, Verdict
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.verify_step import Decided, Verification
from outrider.engine.engine import Engine
from outrider.worker.step_runner import StepRunner
from outrider.worker.stream import SessionStream
from verify_service.verifier import Verifier, VerifyStream

_log = structlog.get_logger()


class Inlet(SessionStream[DraftOpen, DraftEvent]):
    """A drafter's session whose events end in a call."""

    def __init__(self, opening: DraftOpen, take: Callable[[DraftEvent | OutriderError | None], None]) -> None:
        self.opening = opening
        self.grammar = None
        self.arrived = time.monotonic()
        self._take = take

    def add(self, content: DraftEvent | OutriderError | None, started_ns: int | None = None) -> None:
        """See `SessionStream.add`."""
        self._take(content)

    def flush(self) -> None:
        """See `SessionStream.flush`: nothing waits."""


class ColocatedVerifier(Verifier):
    """Before each round drafts, on the same cores, as many levels as a round has."""

    def __init__(
        self,
        engine: Engine,
        eos_token_ids: Sequence[int],
        drafter: Drafter,
        *,
        max_queue: int,
        policy: VerifyPolicy,
        runner: Callable[[Engine], StepRunner],
    ) -> None:
        """See `Verifier`. `drafter` has the credit of one round, and sends at once; both follow from the policy."""
        super().__init__(engine, eos_token_ids, max_queue=max_queue, policy=policy, runner=runner)
        self.drafter = drafter
        self.num_levels = 0
        """How many levels a round has."""
        self._drafts: dict[VerifyStream, Inlet] = {}
        """The drafter's side of each session that is seated."""

    @property
    def overlaps(self) -> bool:
        """No: a round comes after its drafts, and drafts after the round before."""
        return False

    def end_drafts(self, session: VerifyStream) -> None:
        """Those that the coordinator would send; the drafter here goes on."""

    def step(self) -> float | None:
        """See `Worker.step`."""
        self._open_drafts()
        has_drafted = False
        for _ in range(self.num_levels):
            if self.drafter.step() != 0.0:
                break
            has_drafted = True
        due = super().step()
        self._close_drafts()
        return 0.0 if has_drafted else due

    def _verdict(
        self, session: VerifyStream, decided: Decided, logprobs: Mapping[VerifyStream, list[TokenLogprobs]]
    ) -> Verdict | OutriderError:
        verdict = super()._verdict(session, decided, logprobs)
        draft = self._drafts.get(session)
        if draft is not None and isinstance(verdict, Verdict):
            self.drafter.commit(draft, Commitment(verdict.position, verdict.token_ids, rollback=False))
        return verdict

    def _open_drafts(self) -> None:
        """Opens the drafter's side of those that have their first token by now."""
        for seated in self.scheduler.admission.seated:
            session = seated.session
            if session.key not in self._drafts and session.state.line.num_generated_tokens:
                draft = Inlet(self._opening(session), partial(self._take, session.key))
                self._drafts[session.key] = draft
                self.drafter.open(draft)

    def _close_drafts(self) -> None:
        """Closes the drafter's side of those that have ended."""
        for session in [session for session in self._drafts if session not in self.scheduler.sessions]:
            self.drafter.close(self._drafts.pop(session))

    def _take(self, session: VerifyStream, content: DraftEvent | OutriderError | None) -> None:
        if isinstance(content, DraftWindow):
            self.graft(session, content, time.monotonic())
        elif not isinstance(content, Opened):
            _log.warning("a session goes on without drafts", session=session.opening.session_id, reason=str(content))
            super().end_drafts(session)

    def _opening(self, session: Verification[VerifyStream]) -> DraftOpen:
        """As a coordinator would open the session at a drafter, with its line as it is by now."""
        opening = session.opening
        return DraftOpen(
            session_id=opening.session_id,
            token_ids=list(session.token_ids),
            num_prompt_tokens=opening.num_prompt_tokens,
            sampling=opening.sampling,
            max_run_ahead=opening.max_draft_tokens,
            tree_width=1,
            max_length=opening.max_length,
            vocab_size=self.runner.engine.vocab_size,
            cache_salt=opening.cache_salt,
        )
