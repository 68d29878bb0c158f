"""Processes that die and freeze, and the streams between them, on a clock that jumps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Protocol

from bench.simulate.clock import Clock

LATENCY_SECONDS_MAX = 0.004
"""Of one message over one connection."""

SUSPICION_SECONDS = 2.0
"""A peer that has been silent for so long is left, be it dead, frozen or only slow."""


class Process:
    """One incarnation of a service. What it has yet to do waits while it is frozen, and is lost when it dies."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.is_alive = True
        self._frozen_until = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        """What is to be done when it thaws, in order."""
        self._streams: list[Stream] = []

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """The process does something so much later, if it can."""
        self.at(self.clock.now + seconds, happen)

    def at(self, time: float, happen: Callable[[], None]) -> None:
        """The same at a time."""
        self.clock.at(time, partial(self._do, happen))

    def freeze(self, until: float) -> None:
        """SIGSTOP, and SIGCONT at that time."""
        self._frozen_until = max(self._frozen_until, until)
        self.clock.at(until, self._thaw)

    def die(self) -> None:
        """SIGKILL: the peers of its streams hear of it."""
        self.is_alive = False
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.cut(self)

    def join(self, stream: Stream) -> None:
        """The process is one end of `stream`."""
        self._streams.append(stream)

    def leave(self, stream: Stream) -> None:
        """The stream is over."""
        if stream in self._streams:
            self._streams.remove(stream)

    def _do(self, happen: Callable[[], None]) -> None:
        if not self.is_alive:
            return
        self._waiting.append(happen)
        self._thaw()

    def _thaw(self) -> None:
        while self._waiting and self.is_alive and self.clock.now >= self._frozen_until:
            self._waiting.popleft()()


class End(Protocol):
    """What a process does with one of its streams."""

    process: Process

    def on_message(self, stream: Stream, message: Any) -> None:
        """The peer said something."""
        ...

    def on_closed(self, stream: Stream) -> None:
        """The peer has closed the stream, or is gone."""
        ...


class Stream:
    """Both directions between two ends. Each is first in, first out, and as late as the lot says.

    With `repeat_rate` a delivery is followed by that of an earlier message of the same direction.
    """

    def __init__(self, rng: Random, left: End, right: End, repeat_rate: float = 0.0) -> None:
        self._rng = rng
        self._ends = (left, right)
        self._repeat_rate = repeat_rate
        self._due = {id(left): 0.0, id(right): 0.0}
        self._past: dict[int, list[Any]] = {id(left): [], id(right): []}
        self._closed: set[int] = set()
        """The ends that no longer listen."""
        for end in self._ends:
            end.process.join(self)

    def send(self, sender: End, message: Any) -> None:
        """Says `message` to the other end, unless the sender has closed the stream."""
        if id(sender) not in self._closed:
            receiver = self._other(sender)
            self._deliver_later(receiver, partial(self._deliver, receiver, message))

    def close(self, closer: End) -> None:
        """The closer listens no longer. The other end hears of it after all that was said."""
        if id(closer) in self._closed:
            return
        self._closed.add(id(closer))
        closer.process.leave(self)
        receiver = self._other(closer)
        self._deliver_later(receiver, partial(self._end, receiver))

    def cut(self, dead: Process) -> None:
        """A process is gone: of what was under way from it, the other end gets as much as the lot says."""
        for end in self._ends:
            if end.process is dead:
                self._closed.add(id(end))
                receiver = self._other(end)
                receiver.process.after(self._latency(), partial(self._end, receiver))

    def _latency(self) -> float:
        return self._rng.random() * LATENCY_SECONDS_MAX

    def _deliver_later(self, receiver: End, deliver: Callable[[], None]) -> None:
        clock = receiver.process.clock
        due = self._due[id(receiver)] = max(self._due[id(receiver)], clock.now + self._latency())
        receiver.process.at(due, deliver)

    def _deliver(self, receiver: End, message: Any) -> None:
        past = self._past[id(receiver)]
        past.append(message)
        if id(receiver) not in self._closed:
            receiver.on_message(self, message)
        if self._rng.random() < self._repeat_rate and id(receiver) not in self._closed:
            receiver.on_message(self, self._rng.choice(past))

    def _end(self, receiver: End) -> None:
        if id(receiver) not in self._closed:
            self._closed.add(id(receiver))
            receiver.process.leave(self)
            receiver.on_closed(self)

    def _other(self, end: End) -> End:
        left, right = self._ends
        return right if end is left else left


class Watch:
    """Leaves a peer that has been silent for too long."""

    def __init__(self, owner: End, stream: Stream, give_up: Any) -> None:
        self._owner = owner
        self._stream = stream
        self._give_up = give_up
        self._heard = owner.process.clock.now
        self._is_over = False
        owner.process.after(SUSPICION_SECONDS, self._look)

    def heard(self) -> None:
        """A sign of life."""
        self._heard = self._owner.process.clock.now

    def end(self) -> None:
        """Nobody is suspected any more."""
        self._is_over = True

    def _look(self) -> None:
        if self._is_over:
            return
        left = self._heard + SUSPICION_SECONDS - self._owner.process.clock.now
        if left > 1e-9:
            self._owner.process.after(left, self._look)
            return
        self._is_over = True
        self._stream.close(self._owner)
        self._give_up(self._stream)
