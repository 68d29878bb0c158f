"""Worker client: the way to one worker, to its model, health, load and tokenizer, and to sessions there."""

# The generated stubs and grpcio's companions have no types of their own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from outrider.core.protocol.errors import ProtocolViolationError, WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo, PortableTokenizer, WorkerLoad
from outrider.core.protocol.request_trace import TraceSpan
from outrider.core.protocol.validation import CHAT_TEMPLATE_BYTES_MAX, check_load, check_model_info
from outrider.rpc import health, wire
from outrider.rpc.channels import RenewableChannel, open_channel
from outrider.rpc.checked_calls import CheckedCalls, until_intact
from outrider.rpc.multiplexer import Multiplexer
from outrider.rpc.session_stream import SessionStream
from outrider.rpc.status import error_from
from outrider.rpc.stream_kind import DRAFT, EVENTS_BYTES_MAX, VERIFY
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.v1 import common_pb2, verify_pb2

DRAFT_SERVICE = "outrider.v1.DraftService"
"""Full name of the draft service; health answers for its readiness under it."""
VERIFY_SERVICE = "outrider.v1.VerifyService"
"""Full name of the verify service."""

_HEALTH_WATCH = f"/{health.SERVICE_NAME}/Watch"

ANSWER_BYTES_MAX = 64 * 1024
"""Largest answer to what a worker serves and how busy it is: both take some hundred bytes."""

ANSWER_SECONDS = 10.0
"""Longest wait for what a worker serves, and for each part of its tokenizer: it has them at hand."""

SPANS_BYTES_MAX = 1024 * 1024
"""Largest answer to what a worker did for a request: some 15 KB for a session of hundreds of steps, and 64 of those."""

SPANS_SECONDS = 2.0
"""Longest wait for that: somebody waits for it, and the other parts are told without it."""

RESPONSE_BYTES_MAX: Final = {
    VERIFY.path: EVENTS_BYTES_MAX,
    DRAFT.path: EVENTS_BYTES_MAX,
    **{
        f"/{service}/{method}": ANSWER_BYTES_MAX
        for service in (VERIFY_SERVICE, DRAFT_SERVICE)
        for method in ("GetModelInfo", "GetLoad")
    },
    **{f"/{service}/GetSpans": SPANS_BYTES_MAX for service in (VERIFY_SERVICE, DRAFT_SERVICE)},
}
"""Largest answers by the methods' paths."""
RENEW_SECONDS = 2.0
"""Pause between two looks at the TLS files of a worker that cannot be reached: what stands in them may be why."""

TOKENIZER_BYTES_MAX = 256 * 1024 * 1024
"""Largest tokenizer.json that is taken from a worker."""


class WorkerClient:
    """One worker as the coordinator sees it. It owns the channel, and the stream on it that sessions share."""

    def __init__(self, channel: grpc.aio.Channel, service: str, renewable: RenewableChannel | None = None) -> None:
        """`service` is VERIFY_SERVICE or DRAFT_SERVICE. `renewable` makes another channel when TLS files change."""
        self._service = service
        self._renewable = renewable
        self._multiplexer: Multiplexer[Any, Any] | None
        self._use(channel)

    @classmethod
    def connect(cls, address: str, service: str, transport: Transport) -> Self:
        """A client with a channel of its own to `address` (`host:port`). Raises TlsError."""
        if transport == PLAINTEXT:
            return cls(open_channel(address, transport, RESPONSE_BYTES_MAX), service)
        renewable = RenewableChannel(address, transport, RESPONSE_BYTES_MAX)
        return cls(renewable.open(), service, renewable)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection at present."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def watch_model(self) -> AsyncIterator[ModelInfo | None]:
        """Yields the worker's ModelInfo each time it begins to serve and None each time it ceases to. Never ends by
        itself.

        The first answer comes at once: None if the worker cannot be reached or is still loading. This waits on the
        health service's own stream; between connections the channel's backoff paces it. Raises OutriderError if what
        answers is no such worker.
        """
        serving: bool | None = None
        while True:
            if serving is not None:
                await self._until(lambda state: state is grpc.ChannelConnectivity.READY)
            watch = self._calls.follow_state(
                _HEALTH_WATCH,
                health_pb2.HealthCheckRequest(service=self._service),
                health_pb2.HealthCheckResponse,
                wait_for_ready=serving is not None,
            )
            try:
                async with contextlib.aclosing(watch):
                    async for response in watch:
                        now_serving = response.status == health_pb2.HealthCheckResponse.SERVING
                        if now_serving != serving:
                            serving = now_serving
                            yield await self._model_info() if serving else None
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise error_from(error) from error
            if serving is not False:
                serving = False
                yield None

    async def watch_load(self) -> AsyncGenerator[WorkerLoad]:
        """Yields how busy the worker is, at once and at each change, until the worker ends the stream.

        Raises OutriderError for any other end.
        """
        responses = self._calls.follow_state(self._path("GetLoad"), common_pb2.GetLoadRequest(), common_pb2.WorkerLoad)
        try:
            async with contextlib.aclosing(responses):
                async for response in responses:
                    load = wire.decode_load(response)
                    check_load(load)
                    yield load
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error

    async def ask_load(self) -> WorkerLoad:
        """How busy the worker is at this moment: a sign of life, for which this waits without end.

        Raises OutriderError.
        """
        loads = self.watch_load()
        async with contextlib.aclosing(loads):
            async for load in loads:
                return load
        raise WorkerUnavailableError("the service is about to stop")

    async def spans(self, request_id: str) -> list[TraceSpan]:
        """What the worker did for a request that is over; none if it knows nothing of it. Raises OutriderError."""
        request = common_pb2.GetSpansRequest(request_id=request_id)
        try:
            return wire.decode_spans(
                await self._calls.ask(self._path("GetSpans"), request, common_pb2.GetSpansResponse, SPANS_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error

    async def until_reconnected(self) -> None:
        """Waits until the present connection has ended and there is another one: then another process may answer."""
        await self._until(lambda state: state is not grpc.ChannelConnectivity.READY)
        await self._until(lambda state: state is grpc.ChannelConnectivity.READY)

    async def fetch_tokenizer(self) -> PortableTokenizer:
        """The target's tokenizer, from a verifier. Raises OutriderError."""
        return await until_intact(self._fetch_tokenizer)

    async def _fetch_tokenizer(self) -> PortableTokenizer:
        content = bytearray()
        first: verify_pb2.GetTokenizerResponse | None = None
        responses = self._calls.follow(
            self._path("GetTokenizer"), verify_pb2.GetTokenizerRequest(), verify_pb2.GetTokenizerResponse
        )
        try:
            async with contextlib.aclosing(responses), asyncio.timeout(ANSWER_SECONDS) as patience:
                async for response in responses:
                    patience.reschedule(asyncio.get_running_loop().time() + ANSWER_SECONDS)
                    if first is not None and not response.chunk:
                        raise ProtocolViolationError("the worker's tokenizer comes in chunks with nothing in them")
                    first = first or response
                    content += response.chunk
                    if len(content) > TOKENIZER_BYTES_MAX:
                        raise ProtocolViolationError(f"the worker's tokenizer exceeds {TOKENIZER_BYTES_MAX} bytes")
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from error
        except TimeoutError as error:
            raise WorkerUnavailableError(
                f"the worker sent nothing of its tokenizer for {ANSWER_SECONDS:g} s; it is asked again"
            ) from error
        if first is None or hashlib.sha256(content).hexdigest() != first.sha256:
            raise ProtocolViolationError("the worker's tokenizer arrived damaged; restart the verify service")
        tokenizer = PortableTokenizer(bytes(content), dict(first.chat_templates), dict(first.special_tokens))
        if tokenizer.num_template_bytes > CHAT_TEMPLATE_BYTES_MAX:
            raise ProtocolViolationError(f"the worker's chat templates exceed {CHAT_TEMPLATE_BYTES_MAX} bytes")
        return tokenizer

    def open_session(self) -> SessionStream[Any, Any]:
        """A session of the service's own commands and events, on the stream of all, which is begun anew at need.

        Of a client that is closed it is over already.
        """
        if self._multiplexer is None or self._multiplexer.is_over:
            try:
                self._multiplexer = Multiplexer(self.channel, DRAFT if self._service == DRAFT_SERVICE else VERIFY)
            except grpc.aio.UsageError:
                return SessionStream.over(WorkerUnavailableError("the connection to the worker is closed; try again"))
        return self._multiplexer.open()

    async def close(self) -> None:
        """Closes the channel, and with it every session."""
        if self._multiplexer is not None:
            await self._multiplexer.close()
        await self.channel.close()

    def _use(self, channel: grpc.aio.Channel) -> None:
        self.channel, self._multiplexer = channel, None
        self._calls = CheckedCalls(channel)

    def _path(self, method: str) -> str:
        return f"/{self._service}/{method}"

    async def _until(self, holds: Callable[[grpc.ChannelConnectivity], bool]) -> None:
        """Waits for a state of the channel. While it has no connection, it goes on with changed TLS files."""
        while not holds(state := self.channel.get_state(try_to_connect=True)):
            if state is grpc.ChannelConnectivity.READY or self._renewable is None:
                await self.channel.wait_for_state_change(state)
            else:
                await self._changed_or_renewed(state, self._renewable)

    async def _changed_or_renewed(self, state: grpc.ChannelConnectivity, renewable: RenewableChannel) -> None:
        changing = asyncio.ensure_future(self.channel.wait_for_state_change(state))
        try:
            while not changing.done():
                await asyncio.wait({changing}, timeout=RENEW_SECONDS)
                if not changing.done() and (renewed := renewable.renewed()) is not None:
                    before = self.channel
                    self._use(renewed)
                    await before.close()
                    return
        finally:
            changing.cancel()

    async def _model_info(self) -> ModelInfo:
        request = common_pb2.GetModelInfoRequest()
        path, answer_type = self._path("GetModelInfo"), common_pb2.GetModelInfoResponse
        info = wire.decode_model_info((await self._calls.ask(path, request, answer_type, ANSWER_SECONDS)).model)
        check_model_info(info)
        return info
