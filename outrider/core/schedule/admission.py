"""Admission and preemption: who has memory for a KV cache, who waits for it, and who has to give it back.

A session is admitted when there are blocks for the line that it begins with and for some growth of all; those that have
to wait do so by their priority. When growing lines use up the blocks all the same, the seated session that comes last
in that order is *preempted*: it forgets its KV cache, keeps its slot, comes before all others who wait, and feeds its
line again once there is room. The first in order is never preempted, and the blocks suffice for any single session, so
there is always one that goes on to its end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.core.protocol.messages import DraftOpen, VerifyOpen
from outrider.core.schedule.memory import Memory
from outrider.core.schedule.prefill import PrefillScheduler
from outrider.core.schedule.queue import Priority, WaitingQueue, overtake

GROWTH_TOKENS = 64
"""Tokens for which each seated session shall find room when another one is admitted. Whoever is preempted later has to
feed its line again; by then all have grown by about so much, so that costs a few tokens of prompt for each new one."""


class Session(Protocol):
    """What a scheduler has admitted."""

    @property
    def opening(self) -> DraftOpen | VerifyOpen: ...

    @property
    def token_ids(self) -> Sequence[int]:
        """The line as it is by now, always the same list."""
        ...


SessionT = TypeVar("SessionT", bound=Session)


class Queued(Generic[SessionT]):
    """A session that waits for its first slot."""

    __slots__ = ("priority", "session")

    def __init__(self, session: SessionT, priority: Priority) -> None:
        self.session = session
        self.priority = priority


class Seated(Generic[SessionT]):
    """A session with a slot. While it is preempted it waits for blocks like those that are queued."""

    __slots__ = ("is_prefilling", "priority", "session", "slot")

    def __init__(self, session: SessionT, priority: Priority, slot: int) -> None:
        self.session = session
        self.priority = priority
        self.slot = slot
        self.is_prefilling = True
        """Whether its line is still to be fed before anything is decided or drafted."""


class Chunk(NamedTuple, Generic[SessionT]):
    """What one session may feed of its line in the next step."""

    seated: Seated[SessionT]
    num_tokens: int
    completes: bool
    """Whether that is all of it."""


class Admitted(NamedTuple, Generic[SessionT]):
    """What became of those who waited."""

    seated: list[Seated[SessionT]]
    """Those that found room for the first time."""
    refused: list[Queued[SessionT]]
    """Those beyond the queue's bound."""


class Admission(Generic[SessionT]):
    """The sessions of one worker by where they are: in the queue, or seated."""

    def __init__(self, memory: Memory, *, max_queue: int) -> None:
        """At most `max_queue` new sessions wait for room; those beyond it are refused."""
        self._memory = memory
        self.seated: list[Seated[SessionT]] = []
        """Those that may hold blocks, in the order of their admission."""
        self.waiting: WaitingQueue[Queued[SessionT] | Seated[SessionT]] = WaitingQueue()
        """Those that wait for a slot, and those that were preempted."""
        self._places: dict[SessionT, Queued[SessionT] | Seated[SessionT]] = {}
        self._prefill = PrefillScheduler()
        self._max_queue = max_queue
        self._arrivals = itertools.count(1)
        self._growth_blocks = memory.num_blocks(GROWTH_TOKENS)
        self._has_changed = False
        """Whether somebody may find room who did not when it was last tried."""

    def join(self, session: SessionT, deadline: float = math.inf) -> None:
        """Queues a new session. Whether it finds room, has to wait or is refused is decided by `admit`."""
        self._places[session] = queued = Queued(session, Priority(next(self._arrivals), deadline))
        self.waiting.join(queued)
        self._has_changed = True

    def place_of(self, session: SessionT) -> Queued[SessionT] | Seated[SessionT] | None:
        """Where the session is; None if it has ended."""
        return self._places.get(session)

    def admit(self) -> Admitted[SessionT]:
        """Seats those who wait, in order, as far as there is room, and drops those who may not wait."""
        newly_seated: list[Seated[SessionT]] = []
        while self._has_changed and (first := self.waiting.next) is not None:
            if not self._finds_room(first):
                self._has_changed = False
                break
            self.waiting.serve_next()
            if isinstance(first, Queued):
                first = Seated(first.session, first.priority, self._memory.acquire(first.session.opening))
                self._places[first.session] = first
                newly_seated.append(first)
            first.is_prefilling = True
            self.seated.append(first)
        refused: list[Queued[SessionT]] = []
        if len(self.waiting) > self._max_queue:
            queued = [each for each in self.waiting if isinstance(each, Queued)]
            queued.sort(key=lambda each: each.priority.arrival)
            refused = queued[self._max_queue :]
            for each in refused:
                self.dismiss(each.session)
        return Admitted(newly_seated, refused)

    def refusal(self) -> SlotsExhaustedError:
        """What to tell those that were refused."""
        return SlotsExhaustedError(
            f"all {self._memory.num_slots} slots, or all room for keys and values, are taken, and {self._max_queue} "
            "sessions wait already; try again later or elsewhere, or raise --max-sessions or --kv-memory of this worker"
        )

    def dismiss(self, session: SessionT) -> None:
        """Ends the session's stay, whether it is seated or waits; does nothing if it has ended."""
        place = self._places.pop(session, None)
        if place is None:
            return
        if place in self.waiting:
            self.waiting.leave(place)
        if isinstance(place, Seated):
            if place in self.seated:
                self.seated.remove(place)
            self._memory.release(place.slot)
        self._has_changed = True

    def apart(self, sessions: Iterable[Seated[SessionT]]) -> tuple[list[Seated[SessionT]], list[Seated[SessionT]]]:
        """Those of `sessions` whose lines are fed, and those whose lines are not, the latter by priority."""
        others: list[Seated[SessionT]] = []
        prefilling: list[Seated[SessionT]] = []
        for seated in sessions:
            if not self._memory.num_tokens(seated.slot):
                seated.is_prefilling = True  # it is new, or was preempted, or its step failed
            (prefilling if seated.is_prefilling else others).append(seated)
        prefilling.sort(key=lambda seated: seated.priority.order)
        return others, prefilling

    def assign(self, prefilling: Sequence[Seated[SessionT]], budget: int) -> list[Chunk[SessionT]]:
        """Which of `prefilling`, in the order of their priority, feed how much of their lines in the next step.

        At most `budget` tokens altogether, those who complete their line first. Those who get none are left out.
        """
        num_uncomputed: list[int] = []
        for seated in prefilling:
            # What others have computed of the same beginning is taken over here. There is no tree to move yet.
            self._memory.align(seated.slot, seated.session.token_ids)
            num_uncomputed.append(max(self.num_uncomputed_tokens(seated), 1))
        assigned = self._prefill.assign([seated.priority for seated in prefilling], num_uncomputed, budget)
        return [
            Chunk(prefilling[index], num_tokens, num_tokens == num_uncomputed[index]) for index, num_tokens in assigned
        ]

    def has_room(self, num_nodes: Mapping[Seated[SessionT], int]) -> bool:
        """Whether one step can run all these sessions with trees of so many nodes."""
        memory, num_missing = self._memory, 0
        for seated, num in num_nodes.items():
            num_missing += memory.num_missing_blocks(seated.slot, seated.session.token_ids, num)
        return num_missing <= memory.num_available_blocks

    def make_room(self, num_nodes: Mapping[Seated[SessionT], int]) -> set[Seated[SessionT]]:
        """Preempts seated sessions, the last in order first, until one step can run those that stay.

        Returns which of those with a part in the step stay.
        """
        staying = dict(num_nodes)
        while len(self.seated) > 1 and not self.has_room(staying):
            last = max(self.seated, key=lambda seated: seated.priority.order)
            self._memory.forget(last.slot)
            self.seated.remove(last)
            last.priority.put_first()
            self.waiting.join(last)
            staying.pop(last, None)
        return set(staying)

    def observe_prefill(self, num_held: Mapping[Seated[SessionT], int], complete: Iterable[Seated[SessionT]]) -> int:
        """Notes who has prefilled in a step, having held so many tokens before it, and whose lines are complete.

        Returns how many tokens were fed besides the last ones of those lines.
        """
        if not num_held:
            return 0
        num_fed = {seated: self._memory.num_tokens(seated.slot) - before for seated, before in num_held.items()}
        served = {seated for seated, num_tokens in num_fed.items() if num_tokens}
        num_complete = 0
        for seated in complete:
            if seated.is_prefilling:
                seated.is_prefilling = False
                self._has_changed = True  # what it has computed may be shared from now on
                num_complete += 1
        waiting = (seated.priority for seated in self.seated if seated.is_prefilling and seated not in served)
        overtake([seated.priority for seated in served], waiting)
        return sum(num_fed.values()) - num_complete

    def num_uncomputed_tokens(self, place: Queued[SessionT] | Seated[SessionT]) -> int:
        """How many tokens of a session's line have no KV cache at present. Any thread."""
        held = self._memory.num_tokens(place.slot) if isinstance(place, Seated) else 0
        return len(place.session.token_ids) - held

    def _finds_room(self, place: Queued[SessionT] | Seated[SessionT]) -> bool:
        memory, slot = self._memory, place.slot if isinstance(place, Seated) else None
        if slot is None and not memory.num_free_slots:
            return False
        if not self.seated:
            return True
        cache_salt = place.session.opening.cache_salt
        num_missing = memory.num_missing_blocks(slot, place.session.token_ids, cache_salt=cache_salt)
        num_owed = sum(
            max(memory.num_blocks(len(other.session.token_ids)) - memory.num_held_blocks(other.slot), 0)
            for other in self.seated
            if other.is_prefilling
        )
        num_growing = (len(self.seated) + 1) * self._growth_blocks
        return num_missing + num_owed + num_growing <= memory.num_available_blocks
