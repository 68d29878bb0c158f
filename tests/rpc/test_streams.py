"""Bidirectional streams over a real connection: how each end may leave, and what the other end sees."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest
from served import Serve

from outrider.core.protocol.errors import ProtocolViolationError, QueueFullError, SlotsExhaustedError
from outrider.rpc.status import rpc_errors
from outrider.rpc.streams import EOF, OutgoingStream, reading
from outrider.v1 import draft_pb2_grpc
from outrider.v1.draft_pb2 import Commit, DraftCommand, DraftCommands, DraftEvent, DraftEvents, DraftOpened

NUM_RACES = 300
"""Streams whose end crosses the client's writes; without care two in three of them would end in a false INTERNAL."""

NUM_SESSIONS = 1000
LEFT_BYTES_MAX = 40
"""What a session may leave behind on average. One read that gRPC never frees is 96 bytes."""

LIBC = ctypes.CDLL(None)


class Mallinfo(ctypes.Structure):
    """What `mallinfo2` returns."""

    _fields_ = [(f"before_{number}", ctypes.c_size_t) for number in range(7)] + [
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def allocated_bytes() -> int:
    """What this process holds of the C library's memory."""
    LIBC.mallinfo2.restype = Mallinfo
    return LIBC.mallinfo2().uordblks


def command(position: int) -> DraftCommands:
    return DraftCommands(commands=[DraftCommand(commit=Commit(position=position))])


def event(number: int) -> DraftEvents:
    return DraftEvents(events=[DraftEvent(opened=DraftOpened(num_line_tokens=number))])


class Drafter(draft_pb2_grpc.DraftServiceServicer):
    """Serves Draft by a function, and tells when the handler has ended and how."""

    def __init__(self, handle: Callable[[Any], Awaitable[None]]) -> None:
        self._handle = handle
        self.ended = asyncio.Event()
        self.was_cancelled = False

    @rpc_errors
    async def Draft(self, request_iterator: object, context: Any) -> None:
        try:
            await self._handle(context)
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        finally:
            self.ended.set()


def ignore(*_: object) -> None:
    """Takes requests, or the end of them, and does nothing."""


async def received(stream: OutgoingStream[DraftCommands, DraftEvents]) -> list[int]:
    return [response.events[0].opened.num_line_tokens async for response in stream.responses()]


async def test_the_body_writes_while_requests_arrive(serve: Serve) -> None:
    async def handle(context: Any) -> None:
        echoes: asyncio.Queue[int | None] = asyncio.Queue()
        async with reading(
            context,
            lambda request: echoes.put_nowait(request.commands[0].commit.position),
            lambda: echoes.put_nowait(None),
            ignore,
        ):
            while (position := await echoes.get()) is not None:
                await context.write(event(position))

    served = await serve(Drafter(handle))
    with OutgoingStream(served.stub.Draft()) as stream:
        for position in range(5):
            assert await stream.send(command(position))
        await stream.half_close()
        assert await received(stream) == list(range(5))


async def test_the_handler_may_return_while_a_read_is_pending(serve: Serve) -> None:
    async def handle(context: Any) -> None:
        async with reading(context, ignore, ignore, ignore):
            await context.write(event(1))

    served = await serve(Drafter(handle))
    with OutgoingStream(served.stub.Draft()) as stream:
        assert await received(stream) == [1]


@pytest.mark.parametrize("refusal", [None, SlotsExhaustedError("all 4 slots are taken")])
async def test_reading_ends_by_itself_with_the_rpc(serve: Serve, refusal: SlotsExhaustedError | None) -> None:
    """Though the client has neither half-closed nor left. A read that is cancelled would never be freed."""
    readers: set[asyncio.Task[Any]] = set()
    heard: list[object] = []

    async def handle(context: Any) -> None:
        others = asyncio.all_tasks()
        async with reading(context, heard.append, lambda: heard.append(EOF), heard.append):
            readers.update(asyncio.all_tasks() - others)
            await context.write(event(1))
        if refusal is not None:
            raise refusal

    served = await serve(Drafter(handle))
    with OutgoingStream(served.stub.Draft()) as stream:
        with pytest.raises(SlotsExhaustedError) if refusal is not None else nullcontext():
            await received(stream)
        (reader,) = readers
        await reader
    assert heard == []


@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="only the C library of GNU, from 2.33 on, counts its memory")
async def test_sessions_leave_no_memory_behind(serve: Serve) -> None:
    """Not even memory that the interpreter knows nothing of."""

    async def handle(context: Any) -> None:
        await context.read()
        async with reading(context, ignore, ignore, ignore):
            await context.write(event(1))

    served = await serve(Drafter(handle))

    async def run(num_sessions: int) -> int:
        for _ in range(num_sessions):
            with OutgoingStream(served.stub.Draft()) as stream:
                assert await stream.send(command(1))
                assert await received(stream) == [1]
        gc.collect()
        return allocated_bytes()

    before = await run(NUM_RACES)
    assert await run(NUM_SESSIONS) - before < NUM_SESSIONS * LEFT_BYTES_MAX


async def test_what_a_callback_raises_reaches_the_client_through_the_body(serve: Serve) -> None:
    """Even while the body is writing: cancelling that write would leave the client without an answer."""

    def refuse(request: DraftCommands) -> None:
        raise ProtocolViolationError("open comes first")

    async def handle(context: Any) -> None:
        failures: list[Exception] = []
        async with reading(context, refuse, ignore, failures.append):
            while not failures:
                await context.write(event(1))
        raise failures[0]

    served = await serve(Drafter(handle))
    for _ in range(NUM_RACES):
        with OutgoingStream(served.stub.Draft()) as stream:
            assert await stream.send(command(1))
            with pytest.raises(ProtocolViolationError, match="open comes first"):
                await received(stream)


async def test_what_the_body_raises_reaches_the_client(serve: Serve) -> None:
    async def handle(context: Any) -> None:
        async with reading(context, ignore, ignore, ignore):
            raise SlotsExhaustedError("all 4 slots are taken")

    served = await serve(Drafter(handle))
    with (
        OutgoingStream(served.stub.Draft()) as stream,
        pytest.raises(SlotsExhaustedError, match="all 4 slots are taken"),
    ):
        await received(stream)


async def test_a_client_that_leaves_cancels_the_handler(serve: Serve) -> None:
    async def handle(context: Any) -> None:
        async with reading(context, ignore, ignore, ignore):
            await context.write(event(1))
            await asyncio.Event().wait()

    drafter = Drafter(handle)
    served = await serve(drafter)
    with OutgoingStream(served.stub.Draft()) as stream:
        async for _ in stream.responses():
            break
    await drafter.ended.wait()
    assert drafter.was_cancelled


async def test_a_client_that_leaves_while_a_write_waits_for_it_ends_the_handler(serve: Serve) -> None:
    blocked = asyncio.Event()

    async def handle(context: Any) -> None:
        large = DraftEvents()
        large.events.add().drafted.token_ids.extend([2**31] * 500_000)
        async with reading(context, lambda _: blocked.set(), ignore, ignore):
            while True:
                await context.write(large)

    drafter = Drafter(handle)
    served = await serve(drafter)
    with OutgoingStream(served.stub.Draft()) as stream:
        assert await stream.send(command(1))
        await blocked.wait()
    await drafter.ended.wait()


@pytest.mark.parametrize("refusal", [None, QueueFullError("64 events wait")])
async def test_an_end_that_crosses_a_write_loses_neither_responses_nor_reason(
    serve: Serve, refusal: QueueFullError | None
) -> None:
    async def handle(context: Any) -> None:
        await context.read()
        for number in range(3):
            await context.write(event(number))
        if refusal is not None:
            raise refusal

    served = await serve(Drafter(handle))

    async def send_all(stream: OutgoingStream[DraftCommands, DraftEvents]) -> None:
        while await stream.send(command(0)):
            pass

    for _ in range(NUM_RACES):
        numbers: list[int] = []
        outcome: Exception | None = None
        with OutgoingStream(served.stub.Draft()) as stream:
            sender = asyncio.create_task(send_all(stream))
            try:
                async for response in stream.responses():
                    numbers.append(response.events[0].opened.num_line_tokens)
            except QueueFullError as error:
                outcome = error
            await sender
        assert numbers == [0, 1, 2]
        assert str(outcome) == str(refusal)


async def test_sending_after_the_end_is_no_error(serve: Serve) -> None:
    async def handle(context: Any) -> None:
        await context.read()

    served = await serve(Drafter(handle))
    with OutgoingStream(served.stub.Draft()) as stream:
        assert await stream.send(command(0))
        assert await received(stream) == []
        assert not await stream.send(command(1))
        await stream.half_close()


async def test_cancel_ends_the_responses_of_another_task(serve: Serve) -> None:
    async def handle(context: Any) -> None:
        await context.write(event(1))
        await asyncio.Event().wait()

    drafter = Drafter(handle)
    served = await serve(drafter)
    with OutgoingStream(served.stub.Draft()) as stream:
        first = asyncio.Event()

        async def iterate() -> int:
            num_responses = 0
            async for _ in stream.responses():
                num_responses += 1
                first.set()
            return num_responses

        iterating = asyncio.create_task(iterate())
        await first.wait()
        stream.cancel()
        assert await iterating == 1
        assert not await stream.send(command(1))
    await drafter.ended.wait()
    assert drafter.was_cancelled


async def test_a_cancelled_read_is_the_last_one(serve: Serve) -> None:
    """Pins grpcio: the message that follows a cancelled read is swallowed, and the next read says EOF falsely."""
    outcomes: list[object] = []

    async def handle(context: Any) -> None:
        reader = asyncio.create_task(context.read())
        await context.write(event(1))
        reader.cancel()
        await asyncio.wait({reader})
        outcomes.append(reader.cancelled())
        outcomes.append(await context.read())
        await context.write(event(2))

    served = await serve(Drafter(handle))
    with OutgoingStream(served.stub.Draft()) as stream:
        assert await received(stream) == [1, 2]
    assert outcomes == [True, EOF]
