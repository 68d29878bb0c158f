"""The coordinators that a client knows: one is taken after another, and left alone for a while when it failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

from outrider.client.retry import Retry
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.rpc.channels import open_client_channel
from outrider.rpc.transport import Transport
from outrider.v1 import generation_pb2_grpc


class Coordinator:
    """One of them."""

    def __init__(self, address: str, transport: Transport, retry: Retry) -> None:
        self.channel = open_client_channel(address, transport)
        self.stub = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.rests_until = 0.0
        """By the monotonic clock."""
        self._retry = retry
        self.num_failures = 0
        """Since it last answered."""

    def on_answer(self) -> None:
        """It has answered."""
        self.num_failures = 0

    def on_failure(self, asked_seconds: float) -> None:
        """It failed, and is left alone for a while, at least for as long as it asked for."""
        self.num_failures += 1
        self.rests_until = time.monotonic() + self._retry.pause(self.num_failures, asked_seconds)


class Coordinators:
    """All of them, in the order in which they are preferred."""

    def __init__(self, addresses: str | Sequence[str], transport: Transport, retry: Retry) -> None:
        """`addresses` are `host:port`, in one text with commas between them or one by one. Raises TlsError."""
        found = addresses.split(",") if isinstance(addresses, str) else addresses
        self._all = [Coordinator(address.strip(), transport, retry) for address in found]
        self._is_closed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._all)

    async def next(self, avoided: Collection[Coordinator], deadline: float | None) -> Coordinator:
        """The best one that does not rest, as soon as there is one, or the deadline has passed: the one that failed
        least, of equals the first.

        Raises WorkerUnavailableError if they are closed meanwhile.
        """
        now = time.monotonic()
        found = min(
            (each for each in self._all if each not in avoided),
            key=lambda each: (max(each.rests_until, now), each.num_failures),
        )
        until = found.rests_until if deadline is None else min(found.rests_until, deadline)
        if until > now:
            await self._closed_before(until)
        return found

    async def close(self) -> None:
        """Ends all calls."""
        self._is_closed.set()
        for each in self._all:
            await each.channel.close()

    async def _closed_before(self, until: float) -> None:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._is_closed.wait()
        except TimeoutError:
            return
        raise WorkerUnavailableError("the client was closed before it found a coordinator that goes on")
