"""The client: one object per coordinator, one asynchronous iterator per generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from types import TracebackType
from typing import Self, Unpack

import grpc.aio

from outrider.client.credentials import NO_CREDENTIALS, Credentials
from outrider.core.coordinate.events import Event, Finished, Started
from outrider.core.coordinate.server_info import ServerInfo
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.errors import ProtocolViolationError, WorkerUnavailableError
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions, OptionFields, Prompt
from outrider.rpc.channels import open_channel
from outrider.rpc.status import error_from
from outrider.rpc.wire import decode_event, decode_server_info, encode_generate_request
from outrider.v1 import generation_pb2, generation_pb2_grpc


class GenerationClient:
    """Talks to one coordinator.

        async with GenerationClient("127.0.0.1:50050") as client:
            async for event in client.generate("import os", max_tokens=64):
                if isinstance(event, Tokens):
                    print(event.text, end="", flush=True)

    Every failure is an OutriderError: of the class that the service raised, or WorkerUnavailableError if it cannot be
    reached.
    """

    def __init__(self, address: str, credentials: Credentials = NO_CREDENTIALS) -> None:
        """Makes a client of the coordinator at `address` (`host:port`), which is connected to at the first call.

        To be made where the event loop runs that will use it. Raises TlsError.
        """
        self._channel = open_channel(address, credentials.transport)
        self._metadata = credentials.metadata
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()

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
        `timeout_s` bounds the whole generation.

        Leaving the iteration early cancels the generation when the iterator is closed (`contextlib.aclosing` does it at
        once). Raises InvalidRequestError for a request that breaks a bound, and other OutriderErrors.
        """
        options = replace(options, **changes)
        request = encode_generate_request(prompt, options)
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata)
        num_unfinished = 1 if options.num_completions is None else options.num_completions
        started = False
        try:
            async for message in call:
                event = decode_event(message)
                if isinstance(event, Started) is started:
                    raise ProtocolViolationError("the server's events do not begin with one `started`; report this")
                started = True
                num_unfinished -= isinstance(event, Finished)
                yield event
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error
        finally:
            call.cancel()
        if num_unfinished > 0:
            raise WorkerUnavailableError("the server ended the generation without saying why; try again")

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """What is served, and whether speculation is possible at present. Raises OutriderErrors."""
        try:
            response = await self._stub.GetServerInfo(
                generation_pb2.GetServerInfoRequest(), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error
        return decode_server_info(response)
