"""Checked calls: what a coordinator asks a worker beside its sessions, with a checksum over each message.

All of it only reads, so what arrives damaged is asked for again. Streams of sessions have checksums of their own:
`outrider/rpc/multiplexer.py`.
"""

# grpcio has no types for multicallables.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import grpc.aio
from google.protobuf.message import Message

from outrider.core.protocol.errors import DamagedMessageError
from outrider.rpc.checksum import CHECKSUM_METADATA, parsed, sealed
from outrider.rpc.status import error_from

MessageT = TypeVar("MessageT", bound=Message)
T = TypeVar("T")

DAMAGED_MAX = 3
"""Messages in a row that may arrive damaged before the link is given up: three in a row are no chance."""


async def until_intact(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` returns, asked again if it raises DamagedMessageError. Raises that in the end, and what else it
    raises."""
    for _ in range(DAMAGED_MAX):
        try:
            return await ask()
        except DamagedMessageError:
            continue
    return await ask()


class CheckedCalls:
    """The RPCs of one service, or several, at the other end of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def ask(
        self, path: str, request: Message, answer_type: type[MessageT], seconds: float | None = None
    ) -> MessageT:
        """The answer of the unary RPC at `path` (`/package.Service/Method`). Raises AioRpcError and
        DamagedMessageError."""

        async def once() -> MessageT:
            call = self._channel.unary_unary(path)
            try:
                content = await call(
                    sealed(request.SerializeToString()), timeout=seconds, metadata=(CHECKSUM_METADATA,)
                )
            except grpc.aio.AioRpcError as error:
                _raise_if_damaged(error)
                raise
            return parsed(answer_type, content)

        return await until_intact(once)

    async def follow(
        self, path: str, request: Message, answer_type: type[MessageT], *, wait_for_ready: bool = False
    ) -> AsyncGenerator[MessageT]:
        """Every answer of a server-streaming RPC. Raises AioRpcError and DamagedMessageError."""
        call = self._channel.unary_stream(path)(
            sealed(request.SerializeToString()), wait_for_ready=wait_for_ready, metadata=(CHECKSUM_METADATA,)
        )
        try:
            async for content in call:
                yield parsed(answer_type, content)
        except grpc.aio.AioRpcError as error:
            _raise_if_damaged(error)
            raise
        finally:
            call.cancel()

    async def follow_state(
        self, path: str, request: Message, answer_type: type[MessageT], *, wait_for_ready: bool = False
    ) -> AsyncGenerator[MessageT]:
        """The same where each answer tells all there is to know by then, so that a damaged one is asked for again."""
        num_damaged = 0
        while True:
            answers = self.follow(path, request, answer_type, wait_for_ready=wait_for_ready)
            try:
                async for answer in answers:
                    num_damaged = 0
                    yield answer
            except DamagedMessageError:
                num_damaged += 1
                if num_damaged > DAMAGED_MAX:
                    raise
            else:
                return
            finally:
                await answers.aclose()


def _raise_if_damaged(error: grpc.aio.AioRpcError) -> None:
    """Raises DamagedMessageError if the other end says that the request arrived damaged."""
    found = error_from(error)
    if isinstance(found, DamagedMessageError):
        raise found from error
