"""Two of each service in processes of their own, each worker behind a proxy, to be killed, stopped and started anew."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from outrider.cli.child import STOP_GRACE_S, Child, Observer
from outrider.client import GenerationClient
from outrider.core.protocol.errors import OutriderError
from tests.e2e.stack import MODELS, free_address

from .namespace import Namespace
from .proxy import Proxy

ROLES = ("coordinator", "verify", "draft")

_SERVICES = {"coordinator": "GenerationService", "verify": "VerifyService", "draft": "DraftService"}
_MODULES = {"coordinator": "coordinator", "verify": "verify_service", "draft": "draft_service"}

SERVING_SECONDS_MAX = 120.0
"""Longest that a service takes to serve again, on a machine that is busy with much else."""

LOOK_SECONDS = 0.5
"""Between two looks at what a coordinator knows: they take processor time from the streams that are measured."""

LOG_LINES = 100
"""Last ones of a process that are told when it does not end: the stacks of its threads are among them."""


class _Log(Observer):
    """Keeps a process's last lines."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES)

    def log(self, name: str, line: str) -> None:
        self.lines.append(line)


class Place:
    """One place in a pool. After a fault another process serves there, at the same address."""

    def __init__(
        self,
        role: str,
        number: int,
        flags: Sequence[str],
        http_address: str | None = None,
        inside: Namespace | None = None,
    ) -> None:
        """`inside` is the network namespace of its process, if it has one of its own."""
        self.name = f"{role}-{number}"
        self.role = role
        self.inside = inside
        self.address = free_address() if inside is None else f"{inside.address}:{free_address().rsplit(':', 1)[1]}"
        self.http_address = http_address
        self.num_started = 0
        self._flags = flags
        self._log = _Log()
        self.child: Child

    async def start(self) -> None:
        """Starts a process there."""
        self.num_started += 1
        flags = [f"--listen={self.address}", *self._flags]
        if self.http_address is not None:
            flags.append(f"--http={self.http_address}")
        entered = [] if self.inside is None else ["tests.chaos.namespace", self.inside.name]
        self.child = Child(
            self.name,
            [*entered, _MODULES[self.role], *flags],
            address=self.address,
            health_service=f"outrider.v1.{_SERVICES[self.role]}",
            observer=self._log,
        )
        await self.child.start()

    async def drain(self) -> str:
        """Has it drain, and waits for its end. Returns what is wrong with that, with its threads' stacks if it does not
        come (where PYTHONFAULTHANDLER is set); empty if nothing is."""
        self.signal(signal.SIGTERM)
        if not (await asyncio.wait({self.child.end}, timeout=STOP_GRACE_S))[0]:
            self.signal(signal.SIGABRT)
            await asyncio.wait({self.child.end})
            return f"{self.name} did not end its drain in {STOP_GRACE_S:g} s; its log: {' | '.join(self._log.lines)}"
        code = self.child.end.result()
        return f"{self.name} ended its drain with exit code {code}" if code else ""

    def signal(self, number: signal.Signals) -> None:
        """Sends the process there a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.process_id, number)

    async def close(self) -> None:
        """Ends it, whatever it does at present."""
        await self.child.kill()


class Services:
    """All places, and what the coordinators know of the workers."""

    def __init__(self, places: Mapping[str, Sequence[Place]], proxies: Mapping[str, Proxy]) -> None:
        self.places = places
        self.proxies = proxies
        """By the worker's own name: what the coordinators reach it through."""

    @property
    def addresses(self) -> list[str]:
        """Of the coordinators."""
        return [place.address for place in self.places["coordinator"]]

    @property
    def urls(self) -> list[str]:
        """The same by HTTP."""
        return [f"http://{place.http_address}" for place in self.places["coordinator"]]

    @property
    def all(self) -> list[Place]:
        """Every place."""
        return [place for pool in self.places.values() for place in pool]

    async def until_serving(self, place: Place) -> None:
        """Returns when the process at `place` serves and every coordinator knows; a coordinator, when it knows a worker
        of each kind. Raises TimeoutError, and ServiceDiedError if it ends."""
        async with asyncio.timeout(SERVING_SECONDS_MAX):
            await place.child.ready()
            if place.role == "coordinator":
                for role in ("verify", "draft"):
                    await self._until_known(place, {self.proxies[each.name].address for each in self.places[role]})
            else:
                for coordinator in self.places["coordinator"]:
                    await self._until_known(coordinator, {self.proxies[place.name].address})

    async def _until_known(self, coordinator: Place, any_of: Set[str]) -> None:
        async with GenerationClient(coordinator.address) as client:
            while True:
                if any_of & await _serving(client):
                    return
                await asyncio.sleep(LOOK_SECONDS)


async def _serving(client: GenerationClient) -> set[str]:
    try:
        info = await client.server_info(timeout_s=2.0)
    except OutriderError:
        return set()
    return {replica.address for replica in info.replicas if replica.serving}


@asynccontextmanager
async def two_of_each(
    *,
    inside: Namespace | None = None,
    target: Path = MODELS / "target",
    draft: Path = MODELS / "draft",
    flags: Mapping[str, Sequence[str]] | None = None,
) -> AsyncIterator[Services]:
    """Starts two of each service in float32, yields when all serve, and ends them. `flags` are more of each role.

    If there is a namespace, the second worker of each kind is `inside`.
    """
    more = flags or {}
    worker_flags = ("--dtype=float32", "--compile=off", "--num-threads=1", "--max-sessions=16", "--max-context=1024")
    workers = {
        role: [
            Place(role, 1, [f"--model={model}", *worker_flags, *more.get(role, ())]),
            Place(role, 2, [f"--model={model}", *worker_flags, *more.get(role, ())], inside=inside),
        ]
        for role, model in (("verify", target), ("draft", draft))
    }
    async with AsyncExitStack() as running:
        proxies = {
            place.name: await running.enter_async_context(Proxy(place.address))
            for pool in workers.values()
            for place in pool
        }
        pools = {role: ",".join(proxies[place.name].address for place in pool) for role, pool in workers.items()}
        coordinator_flags = [f"--verify={pools['verify']}", f"--draft={pools['draft']}", *more.get("coordinator", ())]
        coordinators = [Place("coordinator", number, coordinator_flags, free_address()) for number in (1, 2)]
        services = Services({"coordinator": coordinators, **workers}, proxies)
        for place in (*workers["verify"], *workers["draft"], *coordinators):
            await place.start()
            running.push_async_callback(place.close)
        for place in services.all:
            await services.until_serving(place)
        yield services
