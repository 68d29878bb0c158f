"""A worker at the other end of a link, that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpc.aio

from coordinator.replica import Replica, Seat
from outrider.core.coordinate.circuit_breaker import CircuitBreaker
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import (
    DraftOpen,
    Verdict,
    VerifyOpen,
)
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.status import rpc_errors
from outrider.v1 import draft_pb2_grpc, verify_pb2_grpc

from .script import TARGET

Handle = Callable[[Any], Awaitable[None]]

DRAFT_OPEN = DraftOpen(
    session_id="s",
    token_ids=[1, 2],
    num_prompt_tokens=2,
    sampling=SamplingParams(),
    max_run_ahead=16,
    tree_width=0,
    max_length=8,
    vocab_size=26,
)
VERIFY_OPEN = VerifyOpen(session_id="s", token_ids=[1, 2], num_prompt_tokens=2, sampling=SamplingParams(), max_length=8)
VERDICT = Verdict(position=2, token_ids=[3], num_accepted=0, num_draft_tokens=0, bonus=False)


class ScriptedWorker(draft_pb2_grpc.DraftServiceServicer, verify_pb2_grpc.VerifyServiceServicer):
    """Both services by one function."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.was_cancelled = asyncio.Event()

    @rpc_errors
    async def Draft(self, request_iterator: object, context: Any) -> None:
        await self._serve(context)

    @rpc_errors
    async def Verify(self, request_iterator: object, context: Any) -> None:
        await self._serve(context)

    async def _serve(self, context: Any) -> None:
        try:
            await self._handle(context)
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


class Standing:
    """What a link needs of a replica, and of its seat there."""

    address = "here"
    model = TARGET

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.breaker = CircuitBreaker()
        for _ in range(2):
            self.breaker.fail(0.0)
        self.loss: OutriderError | None = None
        self.is_handed_over = False
        self.on_loss: Callable[[], None] = lambda: None
        self.is_waited_for = True
        self.num_leavings = 0

    @property
    def replica(self) -> Replica:
        return cast("Replica", self)

    @property
    def num_failures(self) -> int:
        return self.breaker.num_failures

    def hears(self) -> None:
        self.is_waited_for = False

    def waits(self) -> None:
        self.is_waited_for = True

    def leave(self) -> None:
        self.num_leavings += 1


class Served:
    """A worker and a place at it."""

    def __init__(self, worker: ScriptedWorker, standing: Standing) -> None:
        self.worker = worker
        self.standing = standing
        self.seat = cast("Seat", standing)


Serve = Callable[[Handle], Awaitable[Served]]


async def waits(_: Any) -> None:
    await asyncio.Event().wait()
