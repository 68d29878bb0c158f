"""One generation at run time: two streams, one session machine between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import grpc.aio
import structlog

from coordinator.drafter_link import DrafterLink
from coordinator.request import GenerationRequest
from coordinator.text import TextDecoder
from outrider.core.errors import OutriderError, WorkerUnavailableError
from outrider.core.messages import (
    DraftOpen,
    FinishReason,
    ModelInfo,
    TraceContext,
    Verdict,
    VerifyFinished,
    VerifyOpen,
)
from outrider.core.session import (
    CloseDrafter,
    Command,
    DrafterState,
    Emit,
    EndDrafts,
    Finish,
    SendToDrafter,
    SendToVerifier,
    Session,
)
from outrider.rpc import wire
from outrider.rpc.streams import OutgoingStream
from outrider.v1 import verify_pb2_grpc

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EmittedTokens:
    """Committed tokens with the text that became certain with each."""

    emit: Emit
    texts: Sequence[str]


class Generation:
    """Runs one request to its end. Iterate over `run()`; then read the results."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        target: ModelInfo,
        decoder: TextDecoder,
        verify_channel: grpc.aio.Channel,
        draft_channel: grpc.aio.Channel | None,
        max_run_ahead: int,
        trace: TraceContext,
    ) -> None:
        """Without `draft_channel` the target runs alone."""
        self.request = request
        self.session = Session(
            request.prompt_token_ids,
            vocab_size=target.vocab_size,
            max_run_ahead=max_run_ahead,
            drafting=draft_channel is not None,
        )
        self.final_text = ""
        """Text that was held back to the end."""
        self.num_emitted = 0
        """Tokens given out. A stop string may end the text before the round's last token."""
        self.first_token_ms = 0.0
        self.total_ms = 0.0
        self._started = time.monotonic()
        self._request_id = request_id
        self._decoder = decoder
        self._verify_channel = verify_channel
        self._draft_channel = draft_channel
        self._draft_open = DraftOpen(
            session_id=request_id,
            token_ids=request.prompt_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            sampling=request.sampling,
            max_run_ahead=max_run_ahead,
            tree_width=request.tree_width,
            max_length=request.max_length,
            vocab_size=target.vocab_size,
            trace=trace,
        )
        self._verify_open = VerifyOpen(
            session_id=request_id,
            token_ids=request.prompt_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            sampling=request.sampling,
            max_length=request.max_length,
            stop_token_ids=request.stop_token_ids,
            ignore_eos=request.ignore_eos,
            max_draft_tokens=request.max_draft_tokens if draft_channel is not None else 0,
            expect_drafts=draft_channel is not None,
            num_logprobs=request.num_logprobs,
            trace=trace,
        )
        self._verify: OutgoingStream[Any, Any]
        self._drafter: DrafterLink | None = None

    async def run(self) -> AsyncGenerator[EmittedTokens]:
        """Yields the tokens of each round. Raises OutriderError if the verifier refuses or is lost."""
        drafting: asyncio.Task[None] | None = None
        try:
            with ExitStack() as streams:
                call = verify_pb2_grpc.VerifyServiceStub(self._verify_channel).Verify()
                self._verify = streams.enter_context(OutgoingStream(call))
                await self._verify.send(wire.encode_verify_command(self._verify_open))
                if self._draft_channel is not None:
                    self._drafter = streams.enter_context(DrafterLink(self._draft_channel, self._draft_open))
                    drafting = asyncio.create_task(self._relay_drafts(self._drafter))
                async for emitted in self._rounds():
                    if self.first_token_ms == 0.0:
                        self.first_token_ms = self._elapsed_ms()
                    yield emitted
            self.final_text = self._decoder.finish()
        finally:
            self.total_ms = self._elapsed_ms()
            if drafting is not None:
                drafting.cancel()
                await asyncio.gather(drafting, return_exceptions=True)

    async def _rounds(self) -> AsyncGenerator[EmittedTokens]:
        async for message in self._verify.responses():
            event = wire.decode_verify_event(message)
            if isinstance(event, VerifyFinished):
                self._obey(self.session.on_verify_finished(event))
            elif isinstance(event, Verdict):
                for command in self.session.on_verdict(event):
                    if isinstance(command, Emit):
                        yield self._decode(command)
                    else:
                        self._obey([command])
            if self.session.finish_reason is not None:
                return
        raise WorkerUnavailableError("the verify service ended the stream early; try again")

    def _decode(self, emit: Emit) -> EmittedTokens:
        texts: list[str] = []
        for token_id in emit.token_ids:
            texts.append(self._decoder.push(token_id))
            if self._decoder.stopped:
                self._obey(self.session.on_stopped(FinishReason.STOP_STRING))
                break
        self.num_emitted += len(texts)
        return EmittedTokens(emit, texts)

    def _obey(self, commands: Sequence[Command]) -> None:
        """Commands that need no stream to the verifier."""
        for command in commands:
            match command:
                case SendToDrafter(commitment) if self._drafter is not None:
                    self._drafter.send(commitment)
                case CloseDrafter() if self._drafter is not None:
                    self._drafter.close()
                case Finish():
                    pass
                case _:
                    raise AssertionError(command)

    async def _relay_drafts(self, drafter: DrafterLink) -> None:
        """The one writer of the verify stream after its opening: relays windows until the drafter is gone."""
        try:
            async with aclosing(drafter.windows()) as windows:
                async for window in windows:
                    await self._tell_verifier(self.session.on_drafted(window))
        except OutriderError as error:
            if self.session.drafter is DrafterState.ACTIVE and self.session.finish_reason is None:
                _log.warning("drafter lost", request=self._request_id, reason=str(error))
            await self._tell_verifier(self.session.on_drafter_lost(str(error)))

    async def _tell_verifier(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case SendToVerifier(window):
                    await self._verify.send(wire.encode_verify_command(window))
                case EndDrafts():
                    await self._verify.send(wire.encode_verify_command(command))
                case _:
                    self._obey([command])

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._started) * 1000.0
