"""The client: one object per service, however many coordinators it has; one asynchronous iterator per generation."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, Unpack

import grpc.aio

from outrider.client.coordinators import Coordinator, Coordinators
from outrider.client.credentials import NO_CREDENTIALS, Credentials
from outrider.client.received import ReceivedAnswer
from outrider.client.retry import DEFAULT_RETRY, Patience, Retry
from outrider.core.coordinate.events import Event
from outrider.core.coordinate.server_info import ServerInfo
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.errors import InvalidRequestError, ModelMismatchError, WorkerUnavailableError
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions, OptionFields, Prompt
from outrider.core.protocol.request_trace import RequestTrace
from outrider.rpc.status import error_from, retry_seconds
from outrider.rpc.wire import decode_event, decode_request_trace, decode_server_info, encode_generate_request
from outrider.v1 import generation_pb2


class GenerationClient:
    """Talks to a coordinator, and to another one when that is lost.

        async with GenerationClient("127.0.0.1:50050") as client:
            async for event in client.generate("import os", max_tokens=64):
                if isinstance(event, Tokens):
                    print(event.text, end="", flush=True)

    Every failure is an OutriderError: of the class that the service raised, or WorkerUnavailableError if it cannot be
    reached.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        credentials: Credentials = NO_CREDENTIALS,
        *,
        retry: Retry = DEFAULT_RETRY,
    ) -> None:
        """Makes a client of the coordinators at `addresses`, which are connected to at the first call.

        They are `host:port`, in one text with commas between them or one by one; the first that answers is taken. All
        have the same target, and take the same `credentials`. `retry` says when to give up. To be made where the event
        loop runs that will use it. Raises TlsError.
        """
        self._retry = retry
        self._metadata = credentials.metadata
        self._coordinators = Coordinators(addresses, credentials.transport, retry)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._coordinators.close()

    async def generate(
        self,
        prompt: Prompt | ChatPrompt,
        options: GenerationOptions = DEFAULT_OPTIONS,
        *,
        timeout_s: float | None = None,
        **changes: Unpack[OptionFields],
    ) -> AsyncGenerator[Event, None]:
        """Continues `prompt`, a text, token ids or a conversation: yields Started, Tokens for each round, and Finished.

        What `options` say may be said, or changed, by keyword: `generate("import os", max_tokens=64)`. With
        `num_completions` several continuations are written at the same time; their Tokens come mixed and say which they
        belong to, and each has a Finished. `Started.seed_of` tells their seeds. `gather` makes one answer of it all.
        With `report_rounds` a Round after the Tokens of each round tells what became of the guesses. `timeout_s` bounds
        the whole generation.

        When the coordinator is lost, another one or the same one, once it is back, goes on behind the last token: the
        events are those of one answer, each token comes once.

        Leaving the iteration early cancels the generation when the iterator is closed (`contextlib.aclosing` does it at
        once). Raises InvalidRequestError for a request that breaks a bound, and other OutriderErrors.
        """
        received = ReceivedAnswer(prompt, replace(options, **changes), time.monotonic)
        patience = Patience(self._retry, len(self._coordinators))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        avoided: set[Coordinator] = set()
        while True:
            request = encode_generate_request(*received.request())
            coordinator = await self._coordinators.next(avoided, deadline)
            call = coordinator.stub.Generate(request, timeout=_left(deadline), metadata=self._metadata)
            try:
                async for message in call:
                    coordinator.on_answer()
                    event = received.on_event(decode_event(message))
                    if event is not None:
                        patience.on_event()
                        yield event
            except grpc.aio.AioRpcError as lost:
                if received.is_whole:
                    return
                error, seconds = error_from(lost), retry_seconds(lost)
                if received.has_begun and isinstance(error, ModelMismatchError):  # it serves another target
                    avoided.add(coordinator)
                    seconds = 0.0 if len(avoided) < len(self._coordinators) else None
                if seconds is None or not patience.lasts(time.monotonic()):
                    raise error from lost
                coordinator.on_failure(seconds)
                received.on_lost()
            else:
                if not received.is_whole:
                    raise WorkerUnavailableError("the server ended the generation without saying why; try again")
                return
            finally:
                call.cancel()

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """What is served, and whether speculation is possible at present, by the first coordinator that answers.

        `timeout_s` bounds the time that each gets. Raises OutriderErrors.
        """
        asked: set[Coordinator] = set()
        while True:
            coordinator = await self._coordinators.next(asked, None)
            asked.add(coordinator)
            try:
                response = await coordinator.stub.GetServerInfo(
                    generation_pb2.GetServerInfoRequest(), timeout=timeout_s, metadata=self._metadata
                )
                return decode_server_info(response)
            except grpc.aio.AioRpcError as error:
                if retry_seconds(error) is None or len(asked) == len(self._coordinators):
                    raise error_from(error) from error

    async def trace(self, name: str, *, timeout_s: float | None = None) -> RequestTrace:
        """What became of a request that is over, as the first coordinator tells it that remembers it.

        `name` is `Started.request_id` or `Started.trace_id`; of several requests of one trace the latest is told.
        `timeout_s` bounds the time that each gets. Raises InvalidRequestError if none does, and other OutriderErrors.
        """
        request = generation_pb2.GetTraceRequest(id=name)
        asked: set[Coordinator] = set()
        while True:
            coordinator = await self._coordinators.next(asked, None)
            asked.add(coordinator)
            try:
                response = await coordinator.stub.GetTrace(request, timeout=timeout_s, metadata=self._metadata)
                return decode_request_trace(response)
            except grpc.aio.AioRpcError as lost:
                error = error_from(lost)
                may_be_elsewhere = isinstance(error, InvalidRequestError) or retry_seconds(lost) is not None
                if not may_be_elsewhere or len(asked) == len(self._coordinators):
                    raise error from lost


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
