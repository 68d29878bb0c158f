"""A verifier and a drafter driven by hand: no network, no thread, the real engine over a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from draft_service.drafter import Drafter, DraftStream
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import (
    Commitment,
    DraftOpen,
    DraftWindow,
    Opened,
    Verdict,
    VerifyFinished,
    VerifyOpen,
    WorkerLoad,
)
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.admission import Seated
from outrider.core.schedule.policy import VerifyPolicy
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.engine.kv_cache.slots import Slot
from outrider.worker.outbox import Outbox, Stamped
from tests.engine.tiny_models import VOCAB_SIZE, build
from verify_service.verifier import Verifier, VerifyStream

MAX_CONTEXT = 128
ONE_SESSION_TOKENS = MAX_CONTEXT + 256
"""Keys and values of one session at its longest, its tree included."""
STEPS_MAX = 20_000
"""By far more than any of these tests needs."""


def engine_of(*, max_sessions: int = 4, kv_tokens: int | None = None) -> Engine:
    return Engine(build("llama", layers=1), max_sessions=max_sessions, max_context=MAX_CONTEXT, kv_tokens=kv_tokens)


class FixedCurve(StepCurve):
    """A step takes as long as it is told to, whatever is observed."""

    def __init__(self, fixed: float, per_token: float) -> None:
        super().__init__()
        for num_tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
            super().observe(num_tokens, fixed + per_token * num_tokens)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learns nothing."""


class Record(Outbox[Any]):
    """An outbox that keeps what went through it."""

    def __init__(self, log: list[tuple[str, Any]] | None = None, name: str = "") -> None:
        super().__init__()
        self.events: list[Any] = []
        self.error: Exception | None = None
        self.has_ended = False
        self._log, self._name = log, name

    def add(self, item: Stamped[Any] | Exception | None) -> None:
        if item is None:
            self.has_ended = True
        elif isinstance(item, Exception):
            self.error = item
        else:
            self.events.append(item.event)
            if self._log is not None:
                self._log.append((self._name, item.event))

    def flush(self) -> None: ...

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Session:
    """One session at the verifier, and what it was told."""

    def __init__(self, log: list[tuple[str, Any]], name: str, opening: VerifyOpen) -> None:
        self.name = name
        self.record = Record(log, name)
        self.verification = VerifyStream(opening, self.record)

    @property
    def token_ids(self) -> list[int]:
        """What was committed."""
        return [token_id for verdict in self.verdicts for token_id in verdict.token_ids]

    @property
    def verdicts(self) -> list[Verdict]:
        return self.record.of(Verdict)

    @property
    def is_admitted(self) -> bool:
        return bool(self.record.of(Opened))

    @property
    def is_finished(self) -> bool:
        return bool(self.record.of(VerifyFinished))


class Bench:
    """A verifier by hand."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue: int = 100,
        curve: StepCurve | None = None,
        policy: VerifyPolicy | None = None,
    ) -> None:
        """On a device that takes so long for a step; if that is not said, more tokens cost it hardly more."""
        self.engine = engine
        self.verifier = Verifier(engine, (), max_queue=max_queue, policy=policy)
        self.estimates = self.verifier.scheduler.policy.estimates
        self.estimates.curve = curve or FixedCurve(1.0, 0.001)
        self.admission = self.verifier.admission
        self.log: list[tuple[str, Any]] = []
        """Every event of every session, in order."""
        self.passes: list[list[int]] = []
        """For each forward pass how many line tokens it fed for each of its jobs."""
        self.jobs: list[list[Job]] = []
        engine.step = self._noting_step  # type: ignore[method-assign]

    def open(
        self,
        name: str,
        prompt: Sequence[int],
        num_tokens: int,
        *,
        sampling: SamplingParams | None = None,
        time_left_ms: int | None = None,
        expect_drafts: bool = False,
    ) -> Session:
        opening = VerifyOpen(
            session_id=name,
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=sampling or SamplingParams(),
            max_length=len(prompt) + num_tokens,
            ignore_eos=True,
            max_draft_tokens=8,
            expect_drafts=expect_drafts,
            time_left_ms=time_left_ms,
        )
        session = Session(self.log, name, opening)
        self.verifier.open(session.verification)
        return session

    def close(self, session: Session) -> None:
        self.verifier.close(session.verification)

    def graft(self, session: Session, window: DraftWindow) -> None:
        self.verifier.graft(session.verification, window, 0.0)

    def line_of(self, session: Session) -> list[int]:
        """The session's line as it is by now."""
        return self.verifier.scheduler.sessions[session.verification].token_ids

    def seat_of(self, session: Session) -> Seated[Any]:
        """The session's place, which it has while it is preempted too."""
        seated = self.admission.place_of(self.verifier.scheduler.sessions[session.verification])
        assert isinstance(seated, Seated)
        return seated

    def slot_of(self, session: Session) -> Slot:
        """The engine's slot of the session."""
        return self.verifier.runner.memory.slot(self.seat_of(session).slot)

    def load(self) -> WorkerLoad:
        return self.verifier.runner.load("me", self.admission)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Steps until there is nothing to do, or `until` says so."""
        for _ in range(STEPS_MAX):
            if until() or self.verifier.step() is None:
                return
        raise AssertionError("no end in sight")

    @property
    def is_empty(self) -> bool:
        """Whether every slot and every block is available again."""
        blocks = self.engine.blocks
        return self.engine.num_free_slots == self.engine.max_sessions and blocks.num_available == blocks.num_blocks

    def _noting_step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        before = [len(job.slot.cached_prefix) for job in jobs]
        output = Engine.step(self.engine, jobs, max_line_tokens)
        self.passes.append([len(job.slot.cached_prefix) - held for job, held in zip(jobs, before, strict=True)])
        self.jobs.append(list(jobs))
        return output


_engine_for_one = cache(partial(engine_of, max_sessions=1))


def alone(prompt: Sequence[int], num_tokens: int, sampling: SamplingParams | None = None) -> list[int]:
    """What the target makes of a prompt with nobody beside it."""
    bench = Bench(_engine_for_one())
    session = bench.open("alone", prompt, num_tokens, sampling=sampling)
    bench.run()
    assert session.is_finished
    return session.token_ids


class Drafts:
    """A drafter by hand."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.drafter = Drafter(engine)
        self.estimates = self.drafter.scheduler.policy.estimates
        self.admission = self.drafter.admission

    def open(self, prompt: Sequence[int], *, max_run_ahead: int = 12, num_tokens: int = 60) -> DraftStream:
        opening = DraftOpen(
            session_id="",
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=SamplingParams(),
            max_run_ahead=max_run_ahead,
            tree_width=1,
            max_length=len(prompt) + num_tokens,
            vocab_size=VOCAB_SIZE,
        )
        session = DraftStream(opening, Record())
        self.drafter.open(session)
        return session

    def run(self) -> None:
        """Steps until there is nothing to draft."""
        for _ in range(STEPS_MAX):
            if self.drafter.step() is None:
                return
        raise AssertionError("no end in sight")

    def commit(self, session: DraftStream, token_ids: Sequence[int]) -> None:
        commitment = Commitment(len(self.line_of(session)), token_ids, rollback=False)
        self.drafter.commit(session, commitment)

    def line_of(self, session: DraftStream) -> list[int]:
        """The session's line as it is by now."""
        return self.drafter.scheduler.sessions[session].token_ids

    def place_of(self, session: DraftStream) -> Any:
        """Where the session is; None if it has ended."""
        found = self.drafter.scheduler.sessions.get(session)
        return found and self.admission.place_of(found)

    def slot_of(self, session: DraftStream) -> Slot:
        """The engine's slot of the session."""
        return self.drafter.runner.memory.slot(self.place_of(session).slot)


def drafted(session: DraftStream) -> list[int]:
    """The token ids that a session has sent, in order."""
    record = session.outbox
    assert isinstance(record, Record)
    return [token_id for window in record.of(DraftWindow) for token_id in window.token_ids]
