"""Many sessions on one stream, against a host of them in the same process: what one suffers, the others do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from served import Serve as ServeDrafter
from served import Served

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.errors import (
    DamagedMessageError,
    FieldViolation,
    InvalidRequestError,
    OutriderError,
    ProtocolViolationError,
    QueueFullError,
    SlotsExhaustedError,
    StepFailedError,
    WorkerUnavailableError,
)
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc import multiplexer as multiplexer_module
from outrider.rpc import session_stream as session_stream_module
from outrider.rpc.checksum import CHECKSUM_METADATA
from outrider.rpc.entry import entry
from outrider.rpc.multiplexer import Multiplexer
from outrider.rpc.protocol_version import VERSION_METADATA
from outrider.rpc.session_failure import decode_failure, encode_failure
from outrider.rpc.session_stream import SessionStream
from outrider.rpc.status import rpc_errors
from outrider.rpc.stream_kind import DRAFT
from outrider.v1 import draft_pb2, draft_pb2_grpc
from outrider.worker import session_host as session_host_module
from outrider.worker.outbox import Outbox
from outrider.worker.session_host import SessionHost
from tests.sessions import commands, told

OPENING = DraftOpen(
    session_id="s",
    token_ids=[1],
    num_prompt_tokens=1,
    sampling=SamplingParams(),
    max_run_ahead=16,
    tree_width=0,
    max_length=8,
    vocab_size=26,
)
WINDOW = DraftWindow(1, 1, [0], [3], [-0.5])
Session = SessionStream[Any, Any]


def commitment(position: int) -> Commitment:
    return Commitment(position, [3], rollback=False)


class Echo:
    """A session that answers each commitment with its opening's number of tokens and the place; see `ServedSession`."""

    def __init__(self, worker: Worker, opening: DraftOpen, outbox: Outbox[Any]) -> None:
        self.worker = worker
        self.outbox = outbox
        outbox.put(Opened(len(opening.token_ids)), 0, 0)

    def take(self, command: Any) -> None:
        if command.position == 0:
            raise ProtocolViolationError("a gap")
        if command.position == 13:
            raise KeyError("a fault of ours")
        self.outbox.put(Opened(command.position), 0, 0)

    def finish(self) -> None:
        self.outbox.end()

    def record(self, stamped: object) -> None: ...

    def close(self, error: BaseException | None) -> None:
        self.worker.closed.append(error)
        self.worker.changed.set()


class Counting:
    """The context of an RPC, of which the worker counts the messages."""

    def __init__(self, worker: Worker, context: Any) -> None:
        self._worker = worker
        self._write = context.write
        self.read = context.read
        self.invocation_metadata = context.invocation_metadata

    async def write(self, message: Any) -> None:
        self._worker.num_messages += 1
        await self._write(message)


class Worker(draft_pb2_grpc.DraftServiceServicer):
    """Hosts such sessions."""

    def __init__(self) -> None:
        self.hosts: list[SessionHost[Any, Any]] = []
        self.sessions: list[Echo] = []
        self.closed: list[BaseException | None] = []
        self.changed = asyncio.Event()
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.has_ended = asyncio.Event()
        self.num_messages = 0

    @rpc_errors
    async def Draft(self, request_iterator: object, context: Any) -> None:
        self.hosts.append(SessionHost(Counting(self, context), DRAFT, self._open))  # pyright: ignore[reportArgumentType]
        await self.hosts[-1].run()
        self.has_ended.set()

    async def _open(self, opening: DraftOpen, outbox: Outbox[Any]) -> Echo:
        if opening.max_length == 1:
            raise InvalidRequestError([FieldViolation("max_length", "too little")])
        await self.may_open.wait()
        self.sessions.append(Echo(self, opening, outbox))
        return self.sessions[-1]

    async def until_closed(self, count: int) -> None:
        while len(self.closed) < count:
            self.changed.clear()
            await self.changed.wait()


@pytest.fixture
async def worker() -> Worker:
    return Worker()


@pytest.fixture
async def served(worker: Worker, serve: ServeDrafter) -> Served:
    return await serve(worker)


@pytest.fixture
async def multiplexer(served: Served) -> AsyncGenerator[Multiplexer[Any, Any]]:
    made = Multiplexer(served.channel, DRAFT)
    yield made
    await made.close()


async def begun(multiplexer: Multiplexer[Any, Any], **changes: Any) -> tuple[Session, AsyncGenerator[Any]]:
    session = multiplexer.open()
    await session.send(DraftOpen(**{**{field: getattr(OPENING, field) for field in DraftOpen.__slots__}, **changes}))
    events = session.events()
    assert await anext(events) == Opened(1)
    return session, events


async def error_of(events: AsyncGenerator[Any]) -> OutriderError:
    with pytest.raises(OutriderError) as raised:
        await anext(events)
    return raised.value


async def test_each_session_hears_its_own_and_all_of_it_in_order(multiplexer: Multiplexer[Any, Any]) -> None:
    found = [await begun(multiplexer) for _ in range(5)]

    async def converse(number: int) -> list[int]:
        session, events = found[number]
        for position in range(1, 20, 2):
            await session.send(commitment(100 * (number + 1) + position))
        return [(await anext(events)).num_line_tokens for _ in range(10)]

    answers = await asyncio.gather(*(converse(number) for number in range(5)))
    assert answers == [[100 * (number + 1) + position for position in range(1, 20, 2)] for number in range(5)]


async def test_what_many_answer_at_once_is_one_message(multiplexer: Multiplexer[Any, Any], worker: Worker) -> None:
    found = [await begun(multiplexer) for _ in range(16)]
    before = worker.num_messages
    for session, _ in found:
        session.offer(commitment(5))
    for _, events in found:
        assert await anext(events) == Opened(5)
    assert worker.num_messages == before + 1


@pytest.mark.parametrize(("position", "error"), [(0, ProtocolViolationError), (13, StepFailedError)])
async def test_a_fault_ends_its_session_and_no_other(
    multiplexer: Multiplexer[Any, Any], worker: Worker, position: int, error: type[OutriderError]
) -> None:
    bad, bad_events = await begun(multiplexer)
    good, good_events = await begun(multiplexer)
    await bad.send(commitment(position))
    assert isinstance(await error_of(bad_events), error)
    assert len(worker.closed) == 1
    await bad.send(commitment(7))
    await good.send(commitment(8))
    assert await anext(good_events) == Opened(8)


async def test_a_refused_opening_says_what_is_wrong_with_it(multiplexer: Multiplexer[Any, Any]) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await begun(multiplexer, max_length=1)
    assert raised.value.violations == (FieldViolation("max_length", "too little"),)
    await begun(multiplexer)


async def test_closing_a_session_frees_it_and_no_other(multiplexer: Multiplexer[Any, Any], worker: Worker) -> None:
    left, left_events = await begun(multiplexer)
    stays, stays_events = await begun(multiplexer)
    left.cancel()
    await worker.until_closed(1)
    assert worker.closed == [None]
    assert [event async for event in left_events] == []
    await stays.send(commitment(3))
    assert await anext(stays_events) == Opened(3)


async def test_a_session_that_is_closed_while_it_opens_leaves_nothing(
    multiplexer: Multiplexer[Any, Any], worker: Worker
) -> None:
    worker.may_open.clear()
    early = multiplexer.open()
    early.offer(OPENING)
    early.offer(commitment(4))
    late, late_events = multiplexer.open(), None
    late.offer(OPENING)
    late.offer(commitment(9))
    early.cancel()
    late_events = late.events()
    await asyncio.wait({reading := asyncio.ensure_future(anext(late_events))}, timeout=0.05)
    worker.may_open.set()
    assert await reading == Opened(1)
    assert await anext(late_events) == Opened(9), "what came while it was opened is not lost"
    assert len(worker.sessions) == 1


async def test_the_end_of_the_stream_is_that_of_all_sessions(
    multiplexer: Multiplexer[Any, Any], worker: Worker, served: Served
) -> None:
    found = [await begun(multiplexer) for _ in range(3)]
    await served.server.stop(None)
    errors = [await error_of(events) for _, events in found]
    assert {type(error) for error in errors} == {WorkerUnavailableError}
    assert len({id(error) for error in errors}) == 3, "each has one of its own"
    assert multiplexer.is_over


async def test_a_damaged_message_is_a_loss_for_all(
    multiplexer: Multiplexer[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [await begun(multiplexer) for _ in range(2)]
    seal: Callable[[bytes], bytes] = multiplexer_module.sealed
    monkeypatch.setattr(multiplexer_module, "sealed", lambda content: seal(content)[:-1] + b"\0")
    await found[0][0].send(commitment(7))
    assert [type(await error_of(events)) for _, events in found] == [DamagedMessageError] * 2


async def test_a_reader_that_does_not_read_fails_alone(
    multiplexer: Multiplexer[Any, Any], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_stream_module, "UNREAD_EVENTS_MAX", 2)
    slow, slow_events = await begun(multiplexer)
    quick, quick_events = await begun(multiplexer)
    for position in (1, 2, 3):
        await slow.send(commitment(position))
        await quick.send(commitment(position))
        assert await anext(quick_events) == Opened(position)
    assert [await anext(slow_events) for _ in range(2)] == [Opened(1), Opened(2)]
    assert isinstance(await error_of(slow_events), QueueFullError)
    await worker.until_closed(1)


async def test_who_sends_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_stream_module, "UNSENT_COMMANDS_MAX", 2)
    sent: list[int] = []
    session: SessionStream[int, Any] = SessionStream(sent.append, lambda: None)
    await session.send(1)
    await session.send(2)
    third = asyncio.ensure_future(session.send(3))
    await asyncio.wait({third}, timeout=0.01)
    assert not third.done()
    session.on_sent()
    await third
    assert sent == [1, 2, 3]


async def test_a_session_too_many_is_refused(
    multiplexer: Multiplexer[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_host_module, "SESSIONS_PER_STREAM_MAX", 2)
    first, _ = await begun(multiplexer)
    await begun(multiplexer)
    with pytest.raises(SlotsExhaustedError, match="2 sessions are on this stream"):
        await begun(multiplexer)
    first.cancel()
    await begun(multiplexer)


async def test_a_worker_that_stops_takes_no_session_and_ends_the_stream_with_the_last(
    multiplexer: Multiplexer[Any, Any], worker: Worker
) -> None:
    session, events = await begun(multiplexer)
    worker.hosts[0].drain()
    with pytest.raises(WorkerUnavailableError, match="about to stop"):
        await begun(multiplexer)
    await session.send(commitment(6))
    assert await anext(events) == Opened(6)
    session.cancel()
    await worker.has_ended.wait()


async def test_numbers_are_not_used_twice(served: Served) -> None:
    call = served.stub.Draft()
    await call.write(commands(DRAFT, OPENING, session=4))
    assert told(DRAFT, await call.read(), 4) == [Opened(1)]
    await call.write(draft_pb2.DraftCommands(closed=[4]))
    await call.write(commands(DRAFT, commitment(2), session=4))
    await call.write(commands(DRAFT, OPENING, session=3))
    assert isinstance(told(DRAFT, await call.read(), 3)[0], ProtocolViolationError)
    await call.write(commands(DRAFT, commitment(2), session=9))
    (failure,) = told(DRAFT, await call.read(), 9)
    assert isinstance(failure, ProtocolViolationError)
    assert "begins with `open`" in str(failure)
    call.cancel()


@pytest.mark.parametrize(
    "metadata",
    [(CHECKSUM_METADATA,), (CHECKSUM_METADATA, (VERSION_METADATA[0], str(PROTOCOL_VERSION + 1)))],
    ids=["older", "newer"],
)
async def test_a_coordinator_of_another_version_is_refused_in_words(served: Served, metadata: Any) -> None:
    call = served.stub.Draft(metadata=metadata)
    code = await call.code()
    assert code.name == "FAILED_PRECONDITION"
    assert "another version of the protocol" in await call.details()


@pytest.mark.parametrize(
    "error",
    [
        ProtocolViolationError("a gap"),
        SlotsExhaustedError("full"),
        InvalidRequestError([FieldViolation("a", "b"), FieldViolation("c", "d")]),
    ],
)
def test_a_failure_arrives_as_it_was_raised(error: OutriderError) -> None:
    message = encode_failure(error, 7)
    arrived = decode_failure(message)
    assert message.session == 7
    assert (type(arrived), str(arrived)) == (type(error), str(error))


@pytest.mark.parametrize("num_characters", [0, 1, 100, 127, 128, 20_000, 3_000_000])
def test_entries_one_after_another_are_a_message(num_characters: int) -> None:
    command = draft_pb2.DraftCommand(session=3, open=draft_pb2.DraftOpen(session_id="x" * num_characters))
    both = entry(command.SerializeToString()) * 2
    assert draft_pb2.DraftCommands.FromString(both) == draft_pb2.DraftCommands(commands=[command, command])
