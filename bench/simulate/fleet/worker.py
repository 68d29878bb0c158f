"""Workers of a fleet: what a coordinator can open sessions at, with slots that end and reports of their load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from bench.simulate.clock import Clock
from bench.simulate.memory import AmpleMemory
from bench.simulate.workers import Text, VirtualDrafter, VirtualVerifier, Work
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import DraftOpen, DraftWindow, Verdict, VerifyFinished, VerifyOpen, WorkerLoad
from outrider.core.schedule.admission import Admission
from outrider.core.schedule.policy import DraftPolicy, VerifyPolicy

MAX_QUEUE = 256
"""Sessions that wait at a verifier: its service's default."""

_SMOOTHING = 0.1
"""Weight of the newest step in the mean that is reported: as in `outrider.worker.step_runner`."""

Told = Verdict | VerifyFinished | DraftWindow | OutriderError
Device = TypeVar("Device", VirtualVerifier, VirtualDrafter)


class Slots(AmpleMemory):
    """So many slots, each with as much KV cache as its session needs; lines have to be prefilled."""

    def __init__(self, num_slots: int) -> None:
        super().__init__()
        self.num_slots = num_slots

    @property
    def num_free_slots(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those that no session holds."""
        return self.num_slots - len(self._num_tokens)

    def acquire(self, opening: DraftOpen | VerifyOpen) -> int:
        """An empty one."""
        slot = super().acquire(opening)
        self._num_tokens[slot] = 0
        return slot


class Worker(Generic[Device]):
    """One process: its device, and who listens."""

    def __init__(self, name: str, clock: Clock, max_sessions: int) -> None:
        self.name, self.max_sessions = name, max_sessions
        self.device: Device
        self.work = Work(clock)
        self.listeners: dict[int, Callable[[Told], None]] = {}
        """By session."""
        self._step_seconds = 0.0

    def tell(self, index: int, message: Told) -> None:
        """What the device says to a session."""
        if index in self.listeners:
            self.listeners[index](message)

    def timed(self, seconds: Callable[[int], float]) -> Callable[[int], float]:
        """The same times of steps, and their mean is kept."""

        def observed(num_tokens: int) -> float:
            taken = seconds(num_tokens)
            self._step_seconds += (_SMOOTHING if self._step_seconds else 1.0) * (taken - self._step_seconds)
            return taken

        return observed

    def load(self) -> WorkerLoad:
        """As `StepRunner.load` has it, with KV cache without end."""
        admission: Admission = self.device.scheduler.admission
        waiting = [*admission.waiting]
        prefilling = [each for each in admission.seated if each.is_prefilling]
        return WorkerLoad(
            instance_id=self.name,
            num_sessions=len(admission.seated),
            num_queued=len(waiting),
            num_queued_tokens=sum(map(admission.num_uncomputed_tokens, (*prefilling, *waiting))),
            num_kv_tokens=0,
            num_free_kv_tokens=0,
            step_ms=self._step_seconds * 1000.0,
        )


def verifier(
    name: str, clock: Clock, texts: Sequence[Text], seconds: Callable[[int], float], max_sessions: int
) -> Worker[VirtualVerifier]:
    """A verifier whose steps take `seconds` of their tokens."""
    worker: Worker[VirtualVerifier] = Worker(name, clock, max_sessions)
    worker.device = VirtualVerifier(
        clock,
        worker.work,
        texts,
        VerifyPolicy(),
        worker.timed(seconds),
        worker.tell,
        memory=Slots(max_sessions),
        max_queue=MAX_QUEUE,
    )
    return worker


def drafter(
    name: str, clock: Clock, texts: Sequence[Text], seconds: Callable[[int], float], max_sessions: int
) -> Worker[VirtualDrafter]:
    """A drafter whose steps take `seconds` of their nodes."""
    worker: Worker[VirtualDrafter] = Worker(name, clock, max_sessions)
    worker.device = VirtualDrafter(
        clock, worker.work, texts, DraftPolicy(), worker.timed(seconds), worker.tell, memory=Slots(max_sessions)
    )
    return worker
