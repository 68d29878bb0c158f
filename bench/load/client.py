"""The client that makes load. Beside the services it takes a share of the same cores, so it does next to nothing: it
keeps each message as the bytes that came, with the time, and reads them when the pass is over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import grpc.aio

from bench.load.workload import Request
from outrider.core.protocol.errors import OutriderError
from outrider.rpc.channels import open_channel
from outrider.rpc.status import error_from
from outrider.rpc.wire import encode_sampling
from outrider.v1 import generation_pb2

ANSWER_SECONDS_MAX = 120.0
"""Longest that an answer is waited for. One that takes longer counts as failed, and no pass hangs on it."""

_GENERATE = "/outrider.v1.GenerationService/Generate"


@dataclass(slots=True)
class Recording:
    """What came of one request. Times are in seconds of the system-wide monotonic clock."""

    sent: float
    arrivals: list[float] = field(default_factory=list[float])
    messages: list[bytes] = field(default_factory=list[bytes])
    """As they came, one for each of `arrivals`."""
    ended: float = 0.0
    error: OutriderError | None = None
    """Why there is no answer, or no whole one."""


class LoadClient:
    """Asks one coordinator over one connection, as often at a time as wanted."""

    def __init__(self, address: str, *, speculate: bool = True) -> None:
        self._channel = open_channel(address)
        self._generate = self._channel.unary_stream(_GENERATE)
        self._speculate = speculate

    async def ask(self, request: Request) -> Recording:
        """Asks and waits for the end of the answer. Failures are recorded, not raised."""
        message = generation_pb2.GenerateRequest(
            token_ids=generation_pb2.TokenIds(ids=request.token_ids),
            sampling=encode_sampling(request.sampling),
            max_tokens=request.max_tokens,
            ignore_eos=True,
            speculation=generation_pb2.SpeculationParams(enabled=self._speculate),
        ).SerializeToString()
        clock = time.monotonic
        recording = Recording(clock())
        call = self._generate(message, timeout=ANSWER_SECONDS_MAX)
        try:
            async for content in call:
                recording.arrivals.append(clock())
                recording.messages.append(content)
        except grpc.aio.AioRpcError as error:
            recording.error = error_from(error)
        finally:
            call.cancel()
        recording.ended = clock()
        return recording

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()
