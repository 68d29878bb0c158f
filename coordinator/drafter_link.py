"""One session's stream to its drafter. Whatever happens to it, the session goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc.aio

from outrider.core.errors import WorkerUnavailableError
from outrider.core.messages import Commitment, DraftOpen, Opened, Window
from outrider.rpc import wire
from outrider.rpc.status import error_from
from outrider.v1 import draft_pb2_grpc

UNREAD_COMMITMENTS_MAX = 1024
"""Most commitments that wait for a drafter that does not read; beyond it the drafter counts as lost."""


class DrafterLink:
    """Commitments go in without waiting; windows come out."""

    def __init__(self, channel: grpc.aio.Channel, opening: DraftOpen) -> None:
        self._call = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        self._opening = opening
        self._commitments: asyncio.Queue[Commitment] = asyncio.Queue(UNREAD_COMMITMENTS_MAX)
        self._overflowed = False

    def send(self, commitment: Commitment) -> None:
        """Queues what was committed. A drafter that does not read is given up."""
        try:
            self._commitments.put_nowait(commitment)
        except asyncio.QueueFull:
            self._overflowed = True
            self._call.cancel()

    def close(self) -> None:
        """Ends the stream; the drafter frees its slot."""
        self._call.cancel()

    async def windows(self) -> AsyncGenerator[Window]:
        """Opens the session and yields what the drafter sends. Raises OutriderError when the stream ends or fails."""
        writer: asyncio.Task[None] | None = None
        try:
            await self._call.write(wire.encode_draft_command(self._opening))
            writer = asyncio.create_task(self._write())
            while (message := await self._call.read()) is not grpc.aio.EOF:
                event = wire.decode_draft_event(message)
                if not isinstance(event, Opened):
                    yield event
            raise WorkerUnavailableError("the draft service ended the stream")
        except asyncio.CancelledError:
            if self._overflowed:
                raise WorkerUnavailableError("the draft service does not read what was committed") from None
            raise
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error
        finally:
            if writer is not None:
                writer.cancel()
            self._call.cancel()

    async def _write(self) -> None:
        try:
            while True:
                await self._call.write(wire.encode_draft_command(await self._commitments.get()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader of this stream learns the reason and says it
