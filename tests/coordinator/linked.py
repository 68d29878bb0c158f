"""A worker at the other end of a link, that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol, cast

from coordinator.drafter_link import GrpcDrafterLink
from coordinator.replica import Replica, Seat
from coordinator.verifier_link import GrpcVerifierLink
from outrider.core.coordinate.circuit_breaker import CircuitBreaker
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import (
    DraftOpen,
    Verdict,
    VerifyOpen,
)
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.session_stream import SessionStream
from outrider.rpc.status import rpc_errors
from outrider.rpc.stream_kind import DRAFT, VERIFY, StreamKind
from outrider.rpc.streams import EOF
from outrider.rpc.worker_client import VERIFY_SERVICE, WorkerClient
from outrider.v1 import draft_pb2_grpc, verify_pb2_grpc
from tests import sessions

from .script import TARGET

Handle = Callable[["Peer"], Awaitable[None]]

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


class Peer:
    """The worker's end of a stream with one session, that of the first command."""

    def __init__(self, context: Any, kind: StreamKind[Any, Any]) -> None:
        self.context = context
        self.kind = kind
        self.session = 0
        self._commands: deque[Any] = deque()

    async def hear(self) -> Any:
        """The next command. Raises EOFError if the session is closed, or the stream is over."""
        while not self._commands:
            message = await self.context.read()
            if message is EOF or message.closed:
                raise EOFError
            self._commands.extend(message.commands)
            self.session = message.commands[0].session
        return self.kind.decode_command(self._commands.popleft())

    async def say(self, *events: Any) -> None:
        """Sends events of the session, in one message."""
        await self.context.write(sessions.events(self.kind, *events, session=self.session))

    async def send(self, message: Any) -> None:
        """Sends a message as it is."""
        await self.context.write(message)


class ScriptedWorker(draft_pb2_grpc.DraftServiceServicer, verify_pb2_grpc.VerifyServiceServicer):
    """Both services by one function."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.was_closed = asyncio.Event()

    @rpc_errors
    async def Draft(self, request_iterator: object, context: Any) -> None:
        await self._serve(Peer(context, DRAFT))

    @rpc_errors
    async def Verify(self, request_iterator: object, context: Any) -> None:
        await self._serve(Peer(context, VERIFY))

    async def _serve(self, peer: Peer) -> None:
        try:
            await self._handle(peer)
        except EOFError:
            self.was_closed.set()


class Standing:
    """What a link needs of a replica, and of its seat there."""

    address = "here"
    model = TARGET

    def __init__(self, client: WorkerClient) -> None:
        self.client = client
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

    def open_session(self) -> SessionStream[Any, Any]:
        return self.client.open_session()

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


class Serve(Protocol):
    """Starts such a worker."""

    async def __call__(self, handle: Handle, service: str = VERIFY_SERVICE) -> Served: ...


def sayings(link: GrpcVerifierLink | GrpcDrafterLink) -> AsyncGenerator[Any]:
    """What comes over a link, as it is."""
    return link.outcomes(lambda event: event)


async def listens(peer: Peer) -> None:
    """To the session's end."""
    while True:
        await peer.hear()


async def waits(_: Peer) -> None:
    """Without ever reading."""
    await asyncio.Event().wait()
