"""A world in which every role crashes: two of each service die, freeze, vanish and come back, and a client resumes.

`CrashingWorld(seed).run()` replays a schedule. Whatever happens, the client's tokens are the target's own, each of them
once, and the answer ends soon after the last fault.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from random import Random
from typing import Any

from bench.simulate.clock import Clock
from outrider.core.coordinate.session import Session
from outrider.core.protocol.messages import FinishReason, Verdict

from .crash_coordinator import Ask, CoordinatorSide, Ended, Failed, Took
from .crash_workers import STEP_SECONDS_MAX, DrafterSide, VerifierSide
from .drafters import Babbler, HonestDrafter
from .processes import LATENCY_SECONDS_MAX, SUSPICION_SECONDS, End, Process, Stream, Watch
from .scenario import draw_scenario

BACKOFF_SECONDS_MAX = 0.5
"""Longest that a client waits before it resumes."""
DOWN_SECONDS_MAX = 3.0
"""Longest that a process is dead or frozen."""
FAULTS_MAX = 8
"""In one schedule, so that each one ends."""
FAULT_AT_THE_END_RATE = 0.15
"""How often the process dies that has just said the last word, which is then lost as often as not."""

ROUND_SECONDS_MAX = STEP_SECONDS_MAX + 4 * LATENCY_SECONDS_MAX
"""Longest that a token takes, on its way to the client, where nothing fails."""
RECOVERY_SECONDS_MAX = DOWN_SECONDS_MAX + 3 * (SUSPICION_SECONDS + BACKOFF_SECONDS_MAX)
"""By far the longest that faults hold a client up once all is well again: it and its coordinator suspect in turn."""

ROLES = ("coordinator", "verifier", "drafter")


class Gone:
    """The far end of a connection that nobody accepts."""

    def __init__(self, clock: Clock) -> None:
        self.process = Process("nobody", clock)
        self.process.die()

    def on_message(self, stream: Stream, message: Any) -> None:
        """Hears nothing."""

    def on_closed(self, stream: Stream) -> None:
        """Hears nothing."""


class Client:
    """Asks, keeps what it gets, and asks another coordinator for the rest when its own is gone."""

    def __init__(self, world: CrashingWorld) -> None:
        self.process = Process("client", world.clock)
        self.received: list[int] = []
        self.reason: FinishReason | None = None
        self.num_asked = 0
        self._world = world
        self._stream: Stream | None = None

    def ask(self) -> None:
        """At any coordinator, for what is missing."""
        self.num_asked += 1
        stream = self._stream = self._world.connect(self, "coordinator")
        self._watch = Watch(self, stream, self.on_closed)
        stream.send(self, Ask(tuple(self.received)))

    def on_message(self, stream: Stream, message: Any) -> None:
        """See `End`. What a coordinator that it has left says does not reach it."""
        assert stream is self._stream
        assert self.reason is None, "a word after the last one"
        self._watch.heard()
        match message:
            case Took(position, token_ids):
                at = position - len(self._world.scenario.prompt)
                assert at == len(self.received), "a gap or a repetition"
                self.received.extend(token_ids)
                self._world.check_line(self._world.scenario.prompt + self.received)
            case Ended(reason):
                self.reason = reason
                self._watch.end()
            case Failed():
                self._watch.end()
                stream.close(self)
                self._ask_later()

    def on_closed(self, stream: Stream) -> None:
        """See `End`."""
        if stream is self._stream and self.reason is None:
            self._watch.end()
            self._ask_later()

    def _ask_later(self) -> None:
        self._stream = None
        self.process.after(self._world.rng.random() * BACKOFF_SECONDS_MAX, self.ask)


_SIDES = {"coordinator": CoordinatorSide, "verifier": VerifierSide, "drafter": DrafterSide}


class CrashingWorld:
    """One request from the first word to the last, with every promise checked on the way."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.scenario = draw_scenario(self.rng)
        stop_at = self.scenario.stop_string_at
        self.stop_at = None if stop_at is None else len(self.scenario.prompt) + stop_at
        """How long the line is when its text meets a stop string, if it does."""
        self.clock = Clock()
        self.seen: Counter[str] = Counter()
        self.expected, self.reason = self.scenario.expected()
        if stop_at is not None and stop_at <= len(self.expected):
            self.expected, self.reason = self.expected[:stop_at], FinishReason.STOP_STRING
        self._whole = self.scenario.prompt + self.scenario.expected()[0]
        self._ticks = 0
        self._pools = {role: [Process(role, self.clock) for _ in range(2)] for role in ROLES}
        self.client = Client(self)
        self.num_faults = self.rng.randint(0, FAULTS_MAX)
        self._last_fault_ends = 0.0
        usual = ROUND_SECONDS_MAX * len(self.expected) / 3
        time = 0.0
        for _ in range(self.num_faults):
            # Some strike one another, others one by one.
            time += self.rng.expovariate(1.0) * self.rng.choice((0.002, usual / 4, usual))
            self.clock.at(time, self._strike)

    def run(self) -> None:
        """Runs to the client's last word, and checks that it is right and in time."""
        self.client.ask()
        self.clock.run(lambda: self.client.reason is not None)
        assert self.client.received == self.expected
        assert self.client.reason is self.reason
        quiet = ROUND_SECONDS_MAX * (len(self.expected) + 2)
        latest = self._last_fault_ends + quiet + RECOVERY_SECONDS_MAX
        assert self.clock.now <= latest, f"{self.clock.now:.1f} s, no later than {latest:.1f} s was promised"

    def connect(self, caller: End, role: str, repeat_rate: float = 0.0) -> Stream:
        """A stream from `caller` to a process of that role: mostly to one that is there, if there is one."""
        pool = self._pools[role]
        there = [process for process in pool if process.is_alive]
        process = self.rng.choice(there if there and self.rng.random() < 0.8 else pool)
        if process.is_alive:
            return Stream(self.rng, caller, _SIDES[role](self, process), repeat_rate)
        gone = Gone(self.clock)
        stream = Stream(self.rng, caller, gone)
        stream.cut(gone.process)
        return stream

    def tick(self) -> int:
        """Time as the workers count it."""
        self._ticks += 1
        return self._ticks

    def check_line(self, token_ids: list[int]) -> None:
        """Whatever anybody holds for committed is what the target alone writes."""
        assert token_ids == self._whole[: len(token_ids)], "committed tokens that the target does not write"

    def check_verdict(self, verdict: Verdict) -> None:
        """What a verifier decides is right, whoever asked and however late."""
        found = self._whole[verdict.position : verdict.position + len(verdict.token_ids)]
        assert list(verdict.token_ids) == found, "a verdict that the target does not give"

    def check_coordinator(self, session: Session) -> None:
        """A coordinator's line is right, and holds all that its client has, if it is still the client's."""
        self.check_line(session.line.token_ids)

    def check_drafter(self, drafter: HonestDrafter | Babbler) -> None:
        """A drafter's line is right."""
        if isinstance(drafter, HonestDrafter):
            self.check_line(drafter.session.line.token_ids)

    def strike_at_the_end(self, role: str) -> None:
        """Kills both processes of a role that has just said its last word, now and then."""
        if self.rng.random() < FAULT_AT_THE_END_RATE and self.num_faults < FAULTS_MAX:
            self.num_faults += 1
            for index, process in enumerate(self._pools[role]):
                if process.is_alive:
                    self._kill(role, index, self.rng.random() * DOWN_SECONDS_MAX)

    def _strike(self) -> None:
        """One process dies, freezes or vanishes, and one like it is there after a while."""
        if self.client.reason is not None:
            return
        role = self.rng.choice(ROLES)
        index = self.rng.randrange(2)
        seconds = self.rng.choice((0.01, 0.3, DOWN_SECONDS_MAX)) * self.rng.random()
        fault = self.rng.choices((self._kill, self._freeze, self._vanish), (5, 3, 2))[0]
        if self._pools[role][index].is_alive:
            fault(role, index, seconds)

    def _kill(self, role: str, index: int, seconds: float) -> None:
        self._note(f"{role} killed", seconds)
        self._pools[role][index].die()
        self.clock.after(seconds, partial(self._return, role, index))

    def _freeze(self, role: str, index: int, seconds: float) -> None:
        self._note(f"{role} frozen", seconds)
        self._pools[role][index].freeze(self.clock.now + seconds)

    def _vanish(self, role: str, index: int, seconds: float) -> None:
        """Its machine is gone: nobody hears of it, and another process takes its place."""
        self._note(f"{role} vanished", seconds)
        self._pools[role][index].freeze(math.inf)
        self.clock.after(seconds, partial(self._return, role, index))

    def _note(self, fault: str, seconds: float) -> None:
        self.seen[fault] += 1
        self._last_fault_ends = max(self._last_fault_ends, self.clock.now + seconds)

    def _return(self, role: str, index: int) -> None:
        self._pools[role][index] = Process(role, self.clock)
