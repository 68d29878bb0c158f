"""Workers on an event loop that is run step by step, and streams to them that are written and read by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio

from outrider.rpc.channels import open_channel
from outrider.v1 import verify_pb2
from tests.e2e.stack import RunningWorker, worker

from .fuzzed import tiny
from .fuzzing import ANSWER_SECONDS_MAX

T = TypeVar("T")

PROMPT = (1, 2, 3)

NUM_EXPECTED = 120
"""Tokens that are known of the target's own text."""

REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
"""What an illegal command ends in."""


class Workers:
    """A verifier and a drafter with tiny models."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._running = AsyncExitStack()
        self.verify = self._enter(worker(tiny("target")))
        self.draft = self._enter(worker(tiny("draft"), draft=True))
        self.channels = {each.address: self._enter(_channel(each)) for each in (self.verify, self.draft)}
        self.expected = self.text(NUM_EXPECTED)
        """What the target writes after PROMPT."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the loop until `work` is done. Raises TimeoutError if that takes too long."""

        async def bounded() -> T:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await work

        return self._runner.run(bounded())

    def text(self, num_tokens: int) -> list[int]:
        """The target's own text, in a session that does all right."""
        opening = verify_pb2.VerifyOpen(
            token_ids=PROMPT, num_prompt_tokens=len(PROMPT), max_length=len(PROMPT) + num_tokens, ignore_eos=True
        )
        stream = self.stream("Verify")
        command = verify_pb2.VerifyCommand(open=opening)
        assert stream.write(verify_pb2.VerifyCommands(commands=[command]).SerializeToString())
        stream.half_close()
        code, messages = stream.rest()
        assert code is grpc.StatusCode.OK
        events = [event for message in messages for event in verify_pb2.VerifyEvents.FromString(message).events]
        return [token_id for event in events for token_id in event.verdict.token_ids]

    def check_nothing_is_left(self) -> None:
        """Every slot is free, and who does all right is served."""
        self.run(self.verify.all_slots_free())
        self.run(self.draft.all_slots_free())
        assert self.text(3) == self.expected[:3]

    def stream(self, method: str) -> Stream:
        """A Verify or a Draft stream."""
        address = self.verify.address if method == "Verify" else self.draft.address
        call = self.channels[address].stream_stream(f"/outrider.v1.{method}Service/{method}")()
        return Stream(self, call)

    def close(self) -> None:
        """Stops them."""
        self.run(self._running.aclose())
        self._runner.close()

    def _enter(self, context: Any) -> Any:
        return self.run(self._running.enter_async_context(context))


class Stream:
    """One stream; what is written and read are bytes, a message each. It is read all the time that the loop runs."""

    def __init__(self, workers: Workers, call: Any) -> None:
        self._workers = workers
        self._call = call
        self._messages: list[bytes] = []
        self._reading: asyncio.Task[None] | None = None

    def write(self, content: bytes) -> bool:
        """Sends a message. Returns whether the stream was still there to take it."""
        return self._workers.run(self._write(content))

    def take(self) -> list[bytes]:
        """What has come and was not taken."""
        taken, self._messages = self._messages, []
        return taken

    def wait(self, seconds: float) -> None:
        """Lets something come."""
        self._workers.run(asyncio.sleep(seconds))

    def half_close(self) -> None:
        """No command will follow."""
        self._workers.run(self._half_close())

    def rest(self) -> tuple[grpc.StatusCode, list[bytes]]:
        """The status, and what came before it and was not taken."""
        code = self._workers.run(self._end())
        return code, self.take()

    def cancel(self) -> None:
        """Leaves."""
        self._call.cancel()

    async def _write(self, content: bytes) -> bool:
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        try:
            await self._call.write(content)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            return False
        return True

    async def _half_close(self) -> None:
        with suppress(grpc.aio.InternalError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def _read(self) -> None:
        try:
            async for event in self._call:
                self._messages.append(event)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass

    async def _end(self) -> grpc.StatusCode:
        if self._reading is not None:
            await self._reading
        return await self._call.code()


def _channel(running: RunningWorker) -> grpc.aio.Channel:
    return open_channel(running.address)
