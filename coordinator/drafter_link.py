"""One session's stream to its drafter. Whatever happens to it, the session goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

import grpc.aio

from outrider.core.errors import WorkerUnavailableError
from outrider.core.messages import Commitment, DraftOpen, Opened, Window
from outrider.rpc import wire
from outrider.rpc.streams import OutgoingStream
from outrider.v1 import draft_pb2_grpc

UNREAD_COMMITMENTS_MAX = 1024
"""Most commitments that wait for a drafter that does not read; beyond it the drafter counts as lost."""


class DrafterLink:
    """Commitments go in without waiting; windows come out. Use it as a context manager: leaving it frees the slot."""

    def __init__(self, channel: grpc.aio.Channel, opening: DraftOpen) -> None:
        self._stream = OutgoingStream(draft_pb2_grpc.DraftServiceStub(channel).Draft())
        self._opening = opening
        self._commitments: asyncio.Queue[Commitment] = asyncio.Queue(UNREAD_COMMITMENTS_MAX)
        self._overflowed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, commitment: Commitment) -> None:
        """Queues what was committed. A drafter that does not read is given up."""
        try:
            self._commitments.put_nowait(commitment)
        except asyncio.QueueFull:
            self._overflowed = True
            self._stream.cancel()

    def close(self) -> None:
        """Ends the stream; the drafter frees its slot."""
        self._stream.cancel()

    async def windows(self) -> AsyncGenerator[Window]:
        """Opens the session and yields what the drafter sends.

        Raises OutriderError when the drafter refuses, fails, or ends the stream by itself.
        """
        writer = asyncio.create_task(self._write())
        try:
            async for message in self._stream.responses():
                event = wire.decode_draft_event(message)
                if not isinstance(event, Opened):
                    yield event
        finally:
            writer.cancel()
        raise WorkerUnavailableError(
            "the draft service does not read what is committed"
            if self._overflowed
            else "the draft service ended the stream"
        )

    async def _write(self) -> None:
        is_open = await self._stream.send(wire.encode_draft_command(self._opening))
        while is_open:
            is_open = await self._stream.send(wire.encode_draft_command(await self._commitments.get()))
