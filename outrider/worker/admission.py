"""The sessions of a worker: who has room for keys and values, who waits for it, and who has to give it back.

A session is *seated* while it may hold blocks. It is admitted when there are blocks for the line that it begins with
and for some growth of all; those that have to wait do so by their turn. When growing lines use up the blocks all the
same, the seated session whose turn is last is *postponed*: it forgets its keys and values, keeps its slot, comes before
all others who wait, and reads its line again once there is room. The first in turn is never postponed, and the blocks
suffice for any single session, so there is always one that goes on to its end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import structlog
import torch

from outrider.core.protocol.errors import OutriderError, SlotsExhaustedError, StepFailedError
from outrider.core.protocol.messages import DraftOpen, Opened, VerifyOpen, WorkerLoad
from outrider.core.schedule.prefill import PrefillScheduler
from outrider.core.schedule.queue import Priority, WaitingQueue, overtake
from outrider.engine.engine import Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.engine.kv_cache.slots import Slot
from outrider.engine.sample.sampler import Sampler
from outrider.worker.outbox import Outbox

GROWTH_TOKENS = 64
"""Tokens for which each seated session shall find room when another one is admitted. Whoever is postponed later has to
read its line again; by then all have grown by about so much, so that costs a few tokens of prompt for each new one."""

_SMOOTHING = 0.1
"""Weight of the newest step in the mean duration that a worker reports: the last ten or so decide."""


class Seated(Protocol):
    """What a worker's session brings along."""

    slot: Slot | None
    """None before it is admitted and after it is dismissed."""
    priority: Priority
    """Given by the roster when the session comes."""
    is_prefilling: bool
    """Whether its line is still to be fed before anything is decided or drafted. Kept by the roster."""
    has_ended: bool
    """Whether the roster has dismissed it."""

    @property
    def opening(self) -> DraftOpen | VerifyOpen: ...

    @property
    def outbox(self) -> Outbox[Any]: ...

    @property
    def deadline(self) -> float: ...

    @property
    def token_ids(self) -> Sequence[int]:
        """The line as it is by now, always the same list once the session is admitted."""
        ...


SessionT = TypeVar("SessionT", bound=Seated)


class Admission(Generic[SessionT]):
    """Engine, sampler and sessions of one worker. Device thread only, but for `load`."""

    def __init__(self, engine: Engine, *, max_queue: int) -> None:
        """At most `max_queue` new sessions wait for room; those beyond it are refused."""
        self.engine = engine
        self.sampler = Sampler(engine.vocab_size, engine.max_sessions, engine.device)
        self.sessions: list[SessionT] = []
        """Those that are seated."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `load` may have changed."""
        self._waiting: WaitingQueue[SessionT] = WaitingQueue()
        self._prefill = PrefillScheduler()
        self._max_queue = max_queue
        self._arrivals = itertools.count(1)
        self._growth_blocks = _num_blocks(GROWTH_TOKENS, engine)
        self._has_changed = False
        """Whether somebody may find room who did not when it was last tried."""
        self._step_seconds = 0.0
        self._log = structlog.get_logger()

    def enter(self, session: SessionT) -> None:
        """Takes in a new session. Whether it finds room, has to wait or is refused is decided by `admit`."""
        session.priority = Priority(next(self._arrivals), session.deadline)
        self._waiting.join(session)
        self._has_changed = True
        self.on_change()

    def admit(self) -> list[SessionT]:
        """Seats those who wait, in turn, as far as there is room, and returns them. Refuses those who may not wait."""
        admitted: list[SessionT] = []
        while self._has_changed and (session := self._waiting.next) is not None:
            if not self._finds_room(session):
                self._has_changed = False
                break
            admitted.append(self._waiting.serve_next())
            self._seat(session)
        if len(self._waiting) > self._max_queue:
            newcomers = [session for session in self._waiting if session.slot is None]
            newcomers.sort(key=lambda session: session.priority.arrival)
            for session in newcomers[self._max_queue :]:
                self.fail(session, self._refusal())
        return admitted

    def dismiss(self, session: SessionT) -> None:
        """Ends the session's stay, whether it is seated or waits; does nothing if it has ended."""
        if session.has_ended:
            return
        session.has_ended = True
        if session in self._waiting:
            self._waiting.leave(session)
        elif session in self.sessions:
            self.sessions.remove(session)
        if session.slot is not None:
            self.sampler.close(session.slot.index)
            self.engine.release(session.slot)
            session.slot = None
        self._has_changed = True
        self.on_change()

    def fail(self, session: SessionT, error: OutriderError) -> None:
        """Ends the session's stream with `error` and dismisses it."""
        session.outbox.fail(error)
        self.dismiss(session)

    def apart(self, sessions: Iterable[SessionT]) -> tuple[list[SessionT], list[SessionT]]:
        """Those of seated `sessions` whose lines are read, and those whose lines are not, the latter in turn."""
        others: list[SessionT] = []
        prefilling: list[SessionT] = []
        for session in sessions:
            assert session.slot is not None
            if not session.slot.cached_prefix:
                session.is_prefilling = True  # it is new, or was postponed, or its step failed
            (prefilling if session.is_prefilling else others).append(session)
        prefilling.sort(key=lambda session: session.priority.order)
        return others, prefilling

    def assign(self, prefilling: Sequence[SessionT], budget: int) -> list[tuple[SessionT, int, bool]]:
        """Which of `prefilling`, in queue order, feed how many tokens in the next step, and whether to the line's end.

        At most `budget` tokens altogether, those who read to the end first. Those who get none are left out.
        """
        num_uncomputed: list[int] = []
        for session in prefilling:
            assert session.slot is not None
            # What others have read of the same beginning is taken over here. A slot that reads has no tree to move.
            session.slot.align(session.token_ids)
            num_uncomputed.append(max(num_uncomputed_tokens(session), 1))
        assigned = self._prefill.assign([session.priority for session in prefilling], num_uncomputed, budget)
        return [(prefilling[index], num_tokens, num_tokens == num_uncomputed[index]) for index, num_tokens in assigned]

    def feed(self, jobs: Mapping[SessionT, Job], max_line_tokens: int) -> tuple[StepOutput, int]:
        """One forward pass for `jobs`; see `Engine.step`. Notes who has read on, and whose line is read to its end.

        Returns what comes out, and how many tokens of lines were fed besides those whose logits come out.
        """
        num_held = {session: _num_held(session) for session in jobs if session.is_prefilling}
        output = self.engine.step(list(jobs.values()), max_line_tokens)
        if not any(output.num_rows):
            output.logits.sum().item()  # waits for the device: else the next step would seem to take this one's time
        if not num_held:
            return output, 0
        num_read = {session: _num_held(session) - before for session, before in num_held.items()}
        served = [session for session, num_tokens in num_read.items() if num_tokens]
        num_complete = 0
        for session, num_rows in zip(jobs, output.num_rows, strict=True):
            if session.is_prefilling and num_rows is not None:
                session.is_prefilling = False
                self._has_changed = True  # what it has read may be shared from now on
                num_complete += 1
        waiting = (session.priority for session in self.sessions if session.is_prefilling and session not in served)
        overtake([session.priority for session in served], waiting)
        return output, sum(num_read.values()) - num_complete

    def has_room(self, jobs: Iterable[Job]) -> bool:
        """Whether one step can run all of `jobs`."""
        return sum(map(self.engine.num_missing_blocks, jobs)) <= self.engine.blocks.num_available

    def make_room(self, jobs: Mapping[SessionT, Job]) -> list[SessionT]:
        """Postpones seated sessions, the last in turn first, until one step can run the jobs of those that stay.

        Returns which of those with a job stay.
        """
        staying = dict(jobs)
        while len(self.sessions) > 1 and not self.has_room(staying.values()):
            last = max(self.sessions, key=lambda session: session.priority.order)
            self._preempt(last)
            staying.pop(last, None)
        return list(staying)

    def run(self, sessions: Sequence[SessionT], step: Callable[[Sequence[SessionT]], None]) -> None:
        """Runs one step for `sessions`. If it fails, runs it for each alone, and fails those that it fails for.

        Raises torch.AcceleratorError: then the device is beyond repair for this process.
        """
        started = time.monotonic()
        try:
            step(sessions)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if len(sessions) > 1:
                for session in sessions:
                    if session in self.sessions:  # and was not postponed since
                        self.run([session], step)
                return
            self._log.error("step failed", session=sessions[0].opening.session_id, exc_info=error)
            self.fail(sessions[0], StepFailedError("the forward pass failed for this session; see the worker's log"))
        seconds = time.monotonic() - started
        self._step_seconds += (_SMOOTHING if self._step_seconds else 1.0) * (seconds - self._step_seconds)
        self.on_change()

    def load(self, instance_id: str) -> WorkerLoad:
        """How busy the worker is. Any thread: each number is right by itself, though a step may end between them."""
        blocks = self.engine.blocks
        sessions, waiting = list(self.sessions), list(self._waiting)
        return WorkerLoad(
            instance_id=instance_id,
            num_sessions=len(sessions),
            num_queued=len(waiting),
            num_queued_tokens=sum(
                map(num_uncomputed_tokens, (*(each for each in sessions if each.is_prefilling), *waiting))
            ),
            num_kv_tokens=blocks.num_blocks * blocks.block_cells,
            num_free_kv_tokens=blocks.num_available * blocks.block_cells,
            step_ms=self._step_seconds * 1000.0,
            num_prompt_tokens=blocks.num_tokens_asked,
            num_cached_prompt_tokens=blocks.num_tokens_found,
        )

    def _finds_room(self, session: SessionT) -> bool:
        slot = session.slot
        if slot is None and not self.engine.num_free_slots:
            return False
        if not self.sessions:
            return True
        borrowed = slot or self.engine.acquire()
        num_missing = self.engine.num_missing_blocks(Job(borrowed, session.token_ids))
        if slot is None:
            self.engine.release(borrowed)
        num_owed = sum(
            max(_num_blocks(len(other.token_ids), self.engine) - len(other.slot.blocks), 0)
            for other in self.sessions
            if other.is_prefilling and other.slot is not None
        )
        num_growing = (len(self.sessions) + 1) * self._growth_blocks
        return num_missing + num_owed + num_growing <= self.engine.blocks.num_available

    def _seat(self, session: SessionT) -> None:
        session.is_prefilling = True
        self.sessions.append(session)
        self.on_change()
        if session.slot is not None:
            return
        session.slot = self.engine.acquire()
        opening, now_ns = session.opening, time.time_ns()
        prompt, output = opening.token_ids[: opening.num_prompt_tokens], opening.token_ids[opening.num_prompt_tokens :]
        self.sampler.open(session.slot.index, opening.sampling, prompt, output)
        session.outbox.put(Opened(len(opening.token_ids)), now_ns, now_ns)

    def _preempt(self, session: SessionT) -> None:
        assert session.slot is not None
        self.engine.forget(session.slot)
        self.sessions.remove(session)
        session.priority.put_first()
        self._waiting.join(session)
        self._log.debug("postponed", session=session.opening.session_id, num_tokens=len(session.token_ids))

    def _refusal(self) -> SlotsExhaustedError:
        return SlotsExhaustedError(
            f"all {self.engine.max_sessions} slots, or all room for keys and values, are taken, and {self._max_queue} "
            "sessions wait already; try again later or elsewhere, or raise --max-sessions or --kv-memory of this worker"
        )


def _num_blocks(num_tokens: int, engine: Engine) -> int:
    return -(-num_tokens // engine.blocks.block_cells)


def num_uncomputed_tokens(session: Seated) -> int:
    """How many tokens of the session's line have no keys and values at present."""
    return len(session.token_ids) - _num_held(session)


def _num_held(session: Seated) -> int:
    return len(session.slot.cached_prefix) if session.slot is not None else 0
