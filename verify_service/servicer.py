"""VerifyService on the wire: decode, check, hand to the device thread; encode what comes back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from outrider.core.propose.recent_answers import RecentAnswersByTenant
from outrider.core.protocol.messages import (
    DraftWindow,
    EndDrafts,
    LimitDrafts,
    Opened,
    Verdict,
    VerifyFinished,
    VerifyOpen,
)
from outrider.core.protocol.validation import check_max_draft_tokens, check_verify_open
from outrider.core.schedule.policy import VerifyPolicy
from outrider.engine.device_thread import DeviceThread
from outrider.rpc import wire
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.streams import reading
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.v1 import verify_pb2, verify_pb2_grpc
from outrider.worker.device_servicer import DeviceServicer
from outrider.worker.lookups import native_lookups, ngram_tables
from outrider.worker.ngram_file import load_ngrams_of
from outrider.worker.outbox import Outbox, Stamped
from outrider.worker.servicer import reopened
from outrider.worker.startup import LoadedModel
from outrider.worker.trace import SessionTrace
from verify_service.config import VerifyConfig
from verify_service.verifier import Verifier, VerifyEvent, VerifyStream

TOKENIZER_CHUNK_BYTES = 1024 * 1024
"""Bytes of tokenizer.json in one message."""


class VerifyServicer(DeviceServicer, verify_pb2_grpc.VerifyServiceServicer):
    """One Verify stream is one session."""

    NAME = "verify"

    def __init__(self, config: VerifyConfig, telemetry: Telemetry, policy: VerifyPolicy | None = None) -> None:
        super().__init__(telemetry)
        self._config = config
        self._policy = policy
        self._native = native_lookups(config.compile_cache) if config.ngram == "on" else None
        self._verifier: Verifier

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """See `WorkerServicer.begin`. Raises UnsupportedModelError if the n-gram table cannot be used."""
        recent = self._config.recent_answers
        static = load_ngrams_of(loaded.info, self._config.ngram_table)
        self._verifier = Verifier(
            loaded.engine,
            loaded.info.eos_token_ids,
            max_queue=self._config.max_queue,
            ngram_table=ngram_tables(self._native, static) if self._config.ngram == "on" else None,
            recent=None if recent == "off" else RecentAnswersByTenant(has_common=recent == "all"),
            policy=self._policy,
        )
        return self._take_over(loaded, self._verifier, on_death)

    @rpc_errors
    async def Verify(self, request: Any, context: ServicerContext) -> None:
        """Opens with the first command; the stream lives as long as the session."""
        loaded = self._require()
        opening = await self._opening(context, wire.decode_verify_command, VerifyOpen)
        check_verify_open(opening, loaded.info.vocab_size, loaded.info.max_context)
        grammar = await self._grammars.state(
            opening.sampling.grammar, opening.token_ids[opening.num_prompt_tokens :], eos_last=opening.ignore_eos
        )
        outbox: Outbox[VerifyEvent] = Outbox()
        session = VerifyStream(opening, outbox, grammar)
        self._device.submit(partial(self._verifier.open, session))
        try:
            with SessionTrace(self._telemetry, names.SPAN_VERIFY_SESSION, opening.session_id, opening.trace) as trace:
                async with reading(
                    context,
                    partial(self._on_command, session),
                    partial(self._device.submit, partial(self._verifier.end_drafts, session)),
                    outbox.fail,
                ):
                    while (stamped := await outbox.take()) is not None:
                        if trace.is_recording:  # before the peer, who may leave at once, hears of it
                            _record(trace, stamped)
                        await context.write(wire.encode_verify_event(stamped.event))
        finally:
            self._device.submit_close(partial(self._verifier.close, session))

    @rpc_errors
    async def GetTokenizer(self, request: verify_pb2.GetTokenizerRequest, context: ServicerContext) -> None:
        """The target's tokenizer in chunks."""
        tokenizer = self._require().tokenizer
        content = tokenizer.json
        first = verify_pb2.GetTokenizerResponse(
            chunk=content[:TOKENIZER_CHUNK_BYTES],
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            chat_templates=tokenizer.chat_templates,
            special_tokens=tokenizer.special_tokens,
        )
        await context.write(first)
        for start in range(TOKENIZER_CHUNK_BYTES, len(content), TOKENIZER_CHUNK_BYTES):
            chunk = content[start : start + TOKENIZER_CHUNK_BYTES]
            await context.write(verify_pb2.GetTokenizerResponse(chunk=chunk))

    def _on_command(self, session: VerifyStream, message: verify_pb2.VerifyCommand) -> None:
        match wire.decode_verify_command(message):
            case DraftWindow() as window:
                self._device.submit(partial(self._verifier.graft, session, window, time.monotonic()))
            case EndDrafts():
                self._device.submit(partial(self._verifier.end_drafts, session))
            case LimitDrafts(max_draft_tokens):
                check_max_draft_tokens(max_draft_tokens)
                self._device.submit(partial(self._verifier.limit_drafts, session, max_draft_tokens))
            case VerifyOpen():
                raise reopened()


def _record(trace: SessionTrace, stamped: Stamped[VerifyEvent]) -> None:
    match stamped.event:
        case Opened():
            trace.seated(stamped.ended_ns)
        case Verdict() as verdict:
            trace.count(
                {
                    names.SESSION_NUM_ROUNDS: 1,
                    names.SESSION_NUM_TOKENS: len(verdict.token_ids),
                    names.SESSION_NUM_DRAFT_TOKENS: verdict.num_draft_tokens,
                    names.SESSION_NUM_ACCEPTED: verdict.num_accepted,
                    names.SESSION_STEP_MS: verdict.verify_ms,
                    names.SESSION_WAIT_MS: verdict.wait_ms,
                }
            )
            if trace.records_steps:
                attributes = {
                    names.ROUND_POSITION: verdict.position,
                    names.ROUND_NUM_DRAFT_TOKENS: verdict.num_draft_tokens,
                    names.ROUND_NUM_ACCEPTED: verdict.num_accepted,
                }
                trace.step(names.SPAN_VERIFY_STEP, stamped.started_ns, stamped.ended_ns, attributes)
        case VerifyFinished():
            pass
