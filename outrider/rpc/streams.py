"""Bidirectional streams on the asyncio stack of gRPC: the patterns that are right, once for all services.

What grpcio 1.85 does, found by experiment and pinned by `tests/rpc/test_streams.py`:

*Server.* A handler may return, and so end the RPC, while another task still awaits `context.read()`: that read ends
with EOF or a UsageError, whether or not the client has half-closed, and is freed. No other read may follow, because
newer versions of grpcio free the call once its handler is done. When the client cancels or vanishes, or sends a message
that is too large, a pending `read()` returns EOF as it does for a half-close, and only then the handler's task is
cancelled: what follows EOF must do no harm. A `write()` that waits for flow control raises InternalError in that case.
Cancelling a read does not cancel the RPC. But the read stays armed in gRPC's core, where it swallows the next message,
and every later `read()` returns EOF although the stream goes on: a cancelled read is the last one. A handler's own
`write()` must not be cancelled: if the first one is, gRPC no longer knows that the initial metadata are on their way,
sends them again with the status, fails, and the client waits for ever.

*Both.* A `read()` or `write()` is never freed by gRPC if its await is cancelled or it fails: 96 bytes, for a write up
to 400. So nothing helps a write that the end of its RPC overtakes.

*Client.* Cancelling an awaited `read()` or `write()` cancels the RPC. A `write()` that crosses the end of the stream
fails and spoils it: `read()` no longer hands out the messages that had arrived, though iterating the call does, and the
status becomes INTERNAL "Internal error from Core": for a while, or for good if the server's own had come before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

import grpc
import grpc.aio

from outrider.rpc.status import ServicerContext, error_from, own_task_is_cancelled

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")

EOF: Final[object] = grpc.aio.EOF  # pyright: ignore
"""What `context.read()` returns when no more requests will come."""

_SPOILED_DETAILS: Final = "Internal error from Core"
"""Status details that grpcio writes over the server's when a write fails."""

_readers: Final[set[asyncio.Task[None]]] = set()
"""Kept here until they have ended, because the event loop does not keep its tasks."""


@contextlib.asynccontextmanager
async def reading(
    context: ServicerContext,
    on_request: Callable[[Any], None],
    on_end: Callable[[], None],
    on_failure: Callable[[Exception], None],
) -> AsyncGenerator[None]:
    """In a handler: reads the stream's requests in a task of its own, so that the body of the `async with` can write.

    `on_request` takes each request as it arrives; `on_end` is called when no more will come. What one of them raises,
    or reading itself, goes to `on_failure`, once, and reading ends: the body has to hear of it where it waits, and to
    raise it. Once the body is left, nothing can be read any more, and the handler has to come to its end.
    """
    is_left = False

    async def read() -> None:
        try:
            while not is_left and (request := await context.read()) is not EOF:
                on_request(request)
            on_end()
        except Exception as failure:
            on_failure(failure)

    reader = asyncio.create_task(read())
    _readers.add(reader)
    reader.add_done_callback(_readers.discard)
    try:
        yield
    finally:
        is_left = True
        on_request = on_end = on_failure = _ignore


def _ignore(*_: object) -> None:
    """Takes what nobody waits for any more."""


class OutgoingStream(Generic[Q, R]):
    """The client's end of a bidirectional stream: one task sends, another iterates over the responses.

    Use it as a context manager: leaving it cancels the RPC if it has not ended, and so frees what the server holds.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall[Q, R]) -> None:
        """`call` is what the stub's method returned."""
        self._call = call
        self._first_failure: grpc.aio.AioRpcError | None = None
        # Called when a status is first known, be it the server's or that of a failed write. If both come, the second
        # shows at the end of the responses.
        call.add_done_callback(self._on_done)

    def __enter__(self) -> OutgoingStream[Q, R]:
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    async def send(self, request: Q) -> bool:
        """Writes a request, waiting for flow control. False if the stream is over: the responses tell how it ended.

        One task at a time. If that task is cancelled while it waits, so is the RPC.
        """
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        except asyncio.CancelledError:
            if own_task_is_cancelled():
                raise
            return False
        return True

    async def half_close(self) -> None:
        """Says that no more requests will come; does nothing if the stream is over."""
        with contextlib.suppress(grpc.aio.InternalError):
            await self._call.done_writing()

    def cancel(self) -> None:
        """Ends the RPC at once if it has not ended: the server's handler is cancelled, the responses stop."""
        self._call.cancel()

    async def responses(self) -> AsyncGenerator[R]:
        """Every response that the server wrote, until it ended the stream with OK or `cancel` was called.

        Raises an OutriderError for any other end, after the last response. If the task that iterates is cancelled, so
        is the RPC.
        """
        try:
            # Left open, the call and its iterator would hold one another.
            async with contextlib.aclosing(cast("AsyncGenerator[R]", aiter(self._call))) as responses:
                async for response in responses:
                    yield response
        except grpc.aio.AioRpcError as failure:
            # No variable for the one of the two that counts: its frames would hold it, and it holds its frames.
            if failure.details() != _SPOILED_DETAILS:
                raise error_from(failure) from failure
            if self._first_failure is not None:
                raise error_from(self._first_failure) from self._first_failure
        except asyncio.CancelledError:
            if own_task_is_cancelled():
                raise

    def _on_done(self, _: object) -> None:
        self._first_failure = _at_once(_failure(self._call))


async def _failure(call: grpc.aio.Call) -> grpc.aio.AioRpcError | None:
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return None
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), await call.trailing_metadata(), await call.details())


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for. A task would be too late: the status gets overwritten."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value
    raise AssertionError("the coroutine waits")
