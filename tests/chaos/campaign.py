"""Faults at random moments, one every few seconds, at any of the services or on a way to one, under streams."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from outrider.cli.child import ServiceDiedError

from .proxy import Proxy, Script
from .services import Place, Services
from .streams import Streams

PAUSE_SECONDS = (1.0, 3.0)
"""Between two faults: recovery from one is mostly over when the next one strikes."""

FREEZE_SECONDS = (0.3, 8.0)
"""How long a process is stopped: some are left for dead, some are not."""

LINK_SECONDS = (0.3, 5.0)
"""How long a link misbehaves."""

PROCESS_FAULTS = ("kill", "freeze", "drain")
PARTITION = "partition"
"""The cable is cut: both workers on its far side are silent at once."""

LINK_FAULTS = ("late", "slow", "black hole", "reset", "half-close", "stall", "flip", PARTITION)

_SCRIPTS = {
    "late": Script(delay_seconds=0.1, jitter_seconds=0.1),
    "slow": Script(bytes_per_second=2000.0),
    "stall": Script(stall_after=0),
    "flip": Script(flip_rate=0.05),
}

RECOVERY_LOOK_SECONDS = 1.0
"""A silence that has begun so soon after a fault is taken for its effect."""


@dataclass(slots=True)
class Fault:
    """One that was made."""

    kind: str
    role: str
    place: str
    at: float
    """By the monotonic clock."""
    back: float | None = None
    """When all was well again, as far as the services can tell."""

    def __str__(self) -> str:
        lasted = "never back" if self.back is None else f"back after {self.back - self.at:.1f} s"
        return f"{self.place} {self.kind}, {lasted}"

    def recovery_seconds(self, streams: Streams, client: str = "") -> float:
        """The longest that a client, or one of that name, waited for its next tokens because of it."""
        return streams.silence(self.at, self.at + RECOVERY_LOOK_SECONDS, client)


class Campaign:
    """Strikes one place after another, so that of each role one always stays."""

    def __init__(self, services: Services, streams: Streams, rng: Random, say: Callable[[str], None]) -> None:
        self.faults: list[Fault] = []
        self.problems: list[str] = []
        """Services that did not come back, or ended with a code that they should not."""
        self._services = services
        self._streams = streams
        self._rng = rng
        self._say = say
        self._struck: set[Place] = set()
        self._mending: set[asyncio.Task[None]] = set()

    async def run(
        self, seconds: float, kinds: Sequence[str], roles: Sequence[str], faults_max: int | None = None
    ) -> None:
        """Strikes for so long, and waits until all is well again."""
        until = time.monotonic() + seconds
        first = len(self.faults)
        said = time.monotonic()
        while time.monotonic() < until and (faults_max is None or len(self.faults) - first < faults_max):
            await asyncio.sleep(self._rng.uniform(*PAUSE_SECONDS))
            place = self._choose(roles)
            if place is None:
                continue
            links = [kind for kind in kinds if kind in LINK_FAULTS and place.name in self._services.proxies]
            if place.inside is None or self._struck:
                links = [kind for kind in links if kind != PARTITION]
            usable = [kind for kind in kinds if kind in PROCESS_FAULTS] + links
            if usable:
                self._strike(place, self._rng.choice(usable))
            if time.monotonic() > said + 10.0:
                said = time.monotonic()
                left = max(until - said, 0.0)
                answers = self._streams.answers
                bad = sum(bool(each.failures) for each in answers)
                self._say(f"{len(self.faults)} faults, {len(answers)} answers, {bad} of them bad; {left:.0f} s to go")
        await asyncio.gather(*self._mending)

    def _choose(self, roles: Sequence[str]) -> Place | None:
        """A place that is well and whose sibling is, too."""
        well = [
            place
            for role in roles
            for place in self._services.places[role]
            if not self._struck & set(self._services.places[role])
        ]
        return self._rng.choice(well) if well else None

    def _strike(self, place: Place, kind: str) -> None:
        fault = Fault(kind, place.role, place.name, time.monotonic())
        self.faults.append(fault)
        struck = {each for each in self._services.all if kind == PARTITION and each.inside is not None} | {place}
        self._struck |= struck
        task = asyncio.create_task(self._strike_and_mend(place, struck, fault))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def _strike_and_mend(self, place: Place, struck: set[Place], fault: Fault) -> None:
        try:
            if fault.kind == PARTITION and place.inside is not None:
                await place.inside.cut()
                try:
                    await asyncio.sleep(self._rng.uniform(*LINK_SECONDS))
                finally:
                    await place.inside.join()
            elif fault.kind in LINK_FAULTS:
                await self._disturb(self._services.proxies[place.name], fault.kind)
            else:
                await self._hit(place, fault.kind)
            for each in struck:
                await self._services.until_serving(each)
            fault.back = time.monotonic()
        except TimeoutError:
            self.problems.append(f"{place.name} does not serve after {fault.kind}")
        except ServiceDiedError as died:
            self.problems.append(f"after {fault.kind}: {died}")
            with contextlib.suppress(TimeoutError, ServiceDiedError):
                await place.start()
                await self._services.until_serving(place)
        finally:
            self._struck -= struck

    async def _hit(self, place: Place, kind: str) -> None:
        if kind == "freeze":
            place.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(self._rng.uniform(*FREEZE_SECONDS))
            finally:
                place.signal(signal.SIGCONT)
            return
        if kind == "kill":
            await place.child.kill()
        else:
            self.problems += filter(None, [await place.drain()])
        await place.start()

    async def _disturb(self, proxy: Proxy, kind: str) -> None:
        if kind == "reset":
            proxy.reset()
            return
        if kind == "half-close":
            proxy.half_close()
            return
        if kind == "black hole":
            proxy.black_hole()
        else:
            proxy.script = _SCRIPTS[kind]
        await asyncio.sleep(self._rng.uniform(*LINK_SECONDS))
        proxy.heal()
        if kind == "stall":
            proxy.reset()


async def roll(
    services: Services, streams: Streams, seconds: float, num_answers: int, say: Callable[[str], None]
) -> list[str]:
    """Restarts every process by SIGTERM, one at a time, again and again for so long, and until so many answers have
    come. Returns what went wrong."""
    until = time.monotonic() + seconds
    problems: list[str] = []
    num_restarted = 0
    while num_restarted < len(services.all) or time.monotonic() < until or len(streams.answers) < num_answers:
        place = services.all[num_restarted % len(services.all)]
        problems += filter(None, [await place.drain()])
        await place.start()
        try:
            await services.until_serving(place)
        except (TimeoutError, ServiceDiedError) as error:
            problems.append(f"{place.name} does not come back: {error}")
        num_restarted += 1
        say(f"{num_restarted} restarts, {len(streams.answers)} answers, {len(streams.failures)} failures")
    return problems
