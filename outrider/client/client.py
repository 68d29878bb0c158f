"""The client: one object per coordinator, one asynchronous iterator per generation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Self

import grpc.aio

from outrider.client.events import Event, Finished, ServerInfo, Started, decode_event, decode_server_info
from outrider.core.protocol.errors import (
    FieldViolation,
    InvalidRequestError,
    ProtocolViolationError,
    WorkerUnavailableError,
)
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.channels import open_channel
from outrider.rpc.status import error_from
from outrider.rpc.wire import encode_sampling
from outrider.v1 import generation_pb2, generation_pb2_grpc

GREEDY = SamplingParams()
"""Always the most likely token."""


class GenerationClient:
    """Talks to one coordinator.

        async with GenerationClient("127.0.0.1:50050") as client:
            async for event in client.generate("import os", max_tokens=64):
                if isinstance(event, Tokens):
                    print(event.text, end="", flush=True)

    Every failure is an OutriderError: of the class that the service raised, or WorkerUnavailableError if it cannot be
    reached.
    """

    def __init__(self, address: str) -> None:
        """Makes a client of the coordinator at `address` (`host:port`), which is connected to at the first call.

        To be made where the event loop runs that will use it.
        """
        self._channel = open_channel(address)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams = GREEDY,
        draw_seed: bool = False,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        num_logprobs: int | None = None,
        speculate: bool = True,
        max_draft_tokens: int | None = None,
        tree_width: int | None = None,
        num_completions: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Continues `prompt`, a text or token ids: yields Started, then Tokens for each round, then Finished.

        `num_completions` asks for several continuations at the same time; their Tokens come mixed and say which they
        belong to, and each has a Finished. `Started.seed_of` tells their seeds. `gather` makes one answer of it all.

        With `draw_seed` the server chooses the seed in place of `sampling.seed`, and Started names it. `num_logprobs`
        asks for each token's log-probability and those of as many alternatives. `speculate=False` runs the target
        alone, which gives the same tokens. `timeout_s` bounds the whole generation. The other arguments are the fields
        of `GenerateRequest` in generation.proto.

        Leaving the iteration early cancels the generation when the iterator is closed (`contextlib.aclosing` does it at
        once). Raises InvalidRequestError for a request that breaks a bound, and other OutriderErrors.
        """
        try:
            request = generation_pb2.GenerateRequest(
                text=prompt if isinstance(prompt, str) else None,
                token_ids=None if isinstance(prompt, str) else generation_pb2.TokenIds(ids=prompt),
                sampling=encode_sampling(sampling),
                max_tokens=max_tokens,
                stop=stop,
                stop_token_ids=stop_token_ids,
                ignore_eos=ignore_eos,
                num_logprobs=num_logprobs,
                speculation=generation_pb2.SpeculationParams(
                    enabled=speculate, max_draft_tokens=max_draft_tokens, tree_width=tree_width
                ),
                num_completions=num_completions,
            )
        except ValueError as error:
            raise InvalidRequestError([FieldViolation("request", f"cannot be sent: {error}")]) from error
        if draw_seed:
            request.sampling.ClearField("seed")
        call = self._stub.Generate(request, timeout=timeout_s)
        num_unfinished = 1 if num_completions is None else num_completions
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
            response = await self._stub.GetServerInfo(generation_pb2.GetServerInfoRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error
        return decode_server_info(response)
