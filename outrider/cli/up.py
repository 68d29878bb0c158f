"""The services on this machine: started together, ready together, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

from outrider.cli.child import Child, Observer
from outrider.cli.children import Children, children_of
from outrider.cli.take_up import taken_up
from outrider.cli.up_options import UpOptions


class Running:
    """Services that are up."""

    def __init__(self, children: Children, observer: Observer) -> None:
        self._coordinators, self._verifiers, self._drafters = children
        self._observer = observer

    @property
    def coordinator(self) -> str:
        """Address of the first coordinator, as `host:port`."""
        return self._coordinators[0].address

    @property
    def coordinators(self) -> Sequence[str]:
        """Addresses of all coordinators."""
        return [child.address for child in self._coordinators]

    @property
    def http(self) -> str | None:
        """Address of the first coordinator's HTTP interface, if it has one."""
        return self._coordinators[0].http_address

    @property
    def verify(self) -> str:
        """Address of the first verify service."""
        return self._verifiers[0].address

    @property
    def draft(self) -> str | None:
        """Address of the first draft service, if there is one."""
        return self._drafters[0].address if self._drafters else None

    async def fail(self) -> NoReturn:
        """Waits until a service ends that cannot be missed, and raises its ServiceDiedError.

        The last coordinator and the last verifier cannot be missed. The end of any other one is a notice.
        """
        running = [*self._coordinators, *self._verifiers, *self._drafters]
        while True:
            await asyncio.wait({child.end for child in running}, return_when=asyncio.FIRST_COMPLETED)
            for child in [child for child in running if child.end.done()]:
                running.remove(child)
                needed = (self._coordinators, self._verifiers)
                if any(child in kind and not any(other in running for other in kind) for kind in needed):
                    raise child.death()
                alone = child in self._drafters and not any(other in running for other in self._drafters)
                self._observer.notice(
                    f"{child.death()}\nThe others go on{': the target decodes alone' if alone else ''}."
                )


@contextlib.asynccontextmanager
async def services(options: UpOptions, observer: Observer | None = None) -> AsyncIterator[Running]:
    """Starts the services, yields when all are ready, and on leaving drains them, the coordinators first.

    A cancellation while they drain kills them. Raises PortTakenError, ServiceDiedError if a service ends before it is
    ready, and NotTakenUpError if a coordinator cannot use workers that are.
    """
    observer = observer or Observer()
    started = children_of(options, observer)
    coordinators, verifiers, drafters = started
    workers = [*verifiers, *drafters]
    # Of workers with one model the first compiles it where nobody has, and the others find it compiled.
    pioneers = [verifiers[0], *drafters[:: options.num_drafters]]
    try:
        # The coordinators last: they then find all workers at once, and the first request has a drafter.
        await _start(pioneers)
        await _start([worker for worker in workers if worker not in pioneers])
        for coordinator in coordinators:
            await coordinator.start()
        await asyncio.gather(*map(taken_up, coordinators))
        yield Running(started, observer)
    finally:
        try:
            await asyncio.gather(*(coordinator.stop() for coordinator in coordinators))
            await asyncio.gather(*(worker.stop() for worker in workers))
        finally:
            await asyncio.gather(*(child.kill() for child in (*coordinators, *workers)))


async def _start(children: Sequence[Child]) -> None:
    for child in children:
        await child.start()
    await asyncio.gather(*(child.ready() for child in children))
