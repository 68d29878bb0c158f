"""Pool: the replicas of one service, found by service discovery at the configured addresses and names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence

import structlog

from coordinator.replica import Replica
from coordinator.resolution import Endpoint, Resolve
from outrider.core.coordinate.liveness import SILENCE_SECONDS
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.worker_client import WorkerClient

RESOLVE_SECONDS = 2.0
"""Pause between two DNS queries for a name. DNS announces no change, so a new worker is found that late at most; a lost
one is noticed at once, by its connection."""

REPLICAS_MAX = 256
"""Most replicas of one pool: each takes a connection and two watches. Further addresses of its names are ignored."""

Connect = Callable[[str, str], WorkerClient]
"""Makes the client of a worker from its address and its service, VERIFY_SERVICE or DRAFT_SERVICE."""

_log = structlog.get_logger()


class Pool:
    """Replicas by address. One whose name does not resolve to it any more is kept until its last session has ended."""

    def __init__(
        self,
        service: str,
        endpoints: Sequence[Endpoint],
        *,
        admit: Callable[[Replica, ModelInfo], Awaitable[Refusal | None]],
        on_change: Callable[[], None],
        on_seats: Callable[[Replica, int], None],
        connect: Connect,
        resolver: Resolve,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """For `admit`, `on_seats` and `silence_seconds` see `Replica`.

        `on_change` is called after each change of what is known.
        """
        self.service = service
        self.endpoints = endpoints
        self._admit = admit
        self._on_change = on_change
        self._on_seats = on_seats
        self._connect = connect
        self._resolver = resolver
        self._silence_seconds = silence_seconds
        self._replicas: dict[str, Replica] = {}
        self._unresolved: dict[Endpoint, Refusal] = {}
        """Why the last query for a name failed."""
        self._addresses: dict[Endpoint, Sequence[str]] = {}
        """Addresses of each endpoint that has been resolved."""
        self._broken = {endpoint: asyncio.Event() for endpoint in endpoints if not endpoint.is_literal}
        self._has_answered = False
        self._follows: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    @property
    def serving(self) -> list[Replica]:
        """The replicas that may get new sessions, each process once."""
        found: dict[str, Replica] = {}
        distrusted: set[str] = set()
        for replica in self._replicas.values():
            if replica.model is None:
                continue
            if replica.distrust_refusal is not None:
                distrusted.add(replica.model.instance_id)
            if replica.is_serving and not replica.is_retired:
                found.setdefault(replica.model.instance_id, replica)
        return [replica for instance_id, replica in found.items() if instance_id not in distrusted]

    @property
    def has_answered(self) -> bool:
        """Whether one has served, or all have been asked once. It stays so when others appear later."""
        if not self._has_answered:
            replicas = self._replicas.values()
            resolved = all(endpoint in self._addresses or endpoint in self._unresolved for endpoint in self.endpoints)
            all_asked = resolved and all(replica.has_answered for replica in replicas)
            self._has_answered = all_asked or any(replica.is_serving for replica in replicas)
        return self._has_answered

    @property
    def refusals(self) -> list[Refusal]:
        """Why there are no more replicas: one for each that gets no new sessions and each name without addresses."""
        return [
            *self._unresolved.values(),
            *(Refusal(f"{replica.address}: {refusal}") for replica in self if (refusal := self.refusal_of(replica))),
        ]

    def refusal_of(self, replica: Replica) -> Refusal | None:
        """Why a replica gets no new sessions; None if it does."""
        if replica.refusal is not None:
            return replica.refusal
        if replica.is_retired:
            return Refusal("its name does not resolve to it any more; its sessions may finish")
        if replica in self.serving:
            return None
        distrusted = (each.distrust_refusal for each in (replica, *self) if _are_one(each, replica))
        if (refusal := next(filter(None, distrusted), None)) is not None:
            return refusal
        twin = next((each for each in self.serving if _are_one(each, replica)), None)
        return Refusal(f"it is the same process as {twin.address}") if twin is not None else None

    def start(self) -> None:
        """Begins to watch. Needs a running event loop."""
        for endpoint in self.endpoints:
            if endpoint.is_literal:
                self._addresses[endpoint] = [str(endpoint)]
            else:
                self._follows.append(asyncio.create_task(self._follow(endpoint)))
        self._update()

    async def stop(self) -> None:
        """Ends all watches and closes all channels."""
        for follow in self._follows:
            follow.cancel()
        await asyncio.gather(*self._follows, return_exceptions=True)
        await asyncio.gather(*self._leaving, *(replica.stop() for replica in self._replicas.values()))

    async def _follow(self, endpoint: Endpoint) -> None:
        """Resolves a name again and again: at intervals, and at once when a replica of it is lost."""
        broken = self._broken[endpoint]
        while True:
            broken.clear()
            known = self._addresses.get(endpoint), self._unresolved.get(endpoint)
            try:
                self._addresses[endpoint] = await self._resolver(endpoint)
                self._unresolved.pop(endpoint, None)
            except OSError as error:
                # Known replicas stay: a name server that is down must not take the workers with it.
                if endpoint not in self._unresolved:
                    _log.warning("name not resolved", name=str(endpoint), reason=str(error))
                reason = error.strerror or error
                self._unresolved[endpoint] = Refusal(f"the name {endpoint.host!r} cannot be resolved ({reason})")
            if known != (self._addresses.get(endpoint), self._unresolved.get(endpoint)):
                self._update()
                self._on_change()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESOLVE_SECONDS):
                    await broken.wait()

    def _update(self) -> None:
        """Makes the replicas those at the endpoints' addresses."""
        wanted = list(dict.fromkeys(address for each in self.endpoints for address in self._addresses.get(each, ())))
        if len(wanted) > REPLICAS_MAX:
            _log.warning("too many replicas", service=self.service, found=len(wanted), used=REPLICAS_MAX)
        used = set(wanted[:REPLICAS_MAX])
        for address in wanted[:REPLICAS_MAX]:
            if address not in self._replicas:
                replica = self._replicas[address] = Replica(
                    address,
                    self.service,
                    self._connect(address, self.service),
                    admit=self._admit,
                    on_change=self._on_replica_change,
                    on_seats=self._on_replica_seats,
                    has_peers=lambda replica: any(each is not replica for each in self.serving),
                    silence_seconds=self._silence_seconds,
                )
                replica.start()
        for replica in self:
            replica.is_retired = replica.address not in used
            self._drop_if_done(replica)

    def _on_replica_change(self, replica: Replica) -> None:
        if not replica.is_serving:
            for endpoint, broken in self._broken.items():
                if replica.address in self._addresses.get(endpoint, ()):
                    broken.set()
        self._on_change()

    def _on_replica_seats(self, replica: Replica, change: int) -> None:
        self._on_seats(replica, change)
        self._drop_if_done(replica)

    def _drop_if_done(self, replica: Replica) -> None:
        if replica.is_retired and not replica.num_own_sessions and self._replicas.pop(replica.address, None):
            _log.info("worker gone", service=self.service, address=replica.address)
            leaving = asyncio.create_task(replica.stop())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            self._on_change()


def _are_one(first: Replica, second: Replica) -> bool:
    return first.model is not None and second.model is not None and first.model.instance_id == second.model.instance_id
