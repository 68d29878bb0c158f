"""VerifyService on the wire: decode, check, hand to the device thread; encode what comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from outrider.core.propose.recent_answers import RecentAnswersByTenant
from outrider.core.protocol.messages import VerifyOpen
from outrider.core.protocol.validation import check_verify_open
from outrider.core.schedule.policy import VerifyPolicy
from outrider.engine.device_thread import DeviceThread
from outrider.engine.engine import Engine
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.stream_kind import VERIFY
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.v1 import verify_pb2, verify_pb2_grpc
from outrider.worker.device_servicer import DeviceServicer
from outrider.worker.lookups import native_lookups, ngram_tables
from outrider.worker.ngram_file import load_ngrams_of
from outrider.worker.outbox import Outbox
from outrider.worker.startup import LoadedModel
from outrider.worker.step_runner import StepRunner
from outrider.worker.trace import SessionTrace
from verify_service.config import VerifyConfig
from verify_service.drafting_verifier import DraftingVerifier
from verify_service.own_drafter import own_drafter
from verify_service.served_verification import ServedVerification
from verify_service.verifier import Verifier, VerifyEvent, VerifyStream

TOKENIZER_CHUNK_BYTES = 1024 * 1024
"""Bytes of tokenizer.json in one message."""


class VerifyServicer(DeviceServicer, verify_pb2_grpc.VerifyServiceServicer):
    """One Verify stream is one coordinator."""

    NAME = "verify"

    def __init__(
        self,
        config: VerifyConfig,
        telemetry: Telemetry,
        policy: VerifyPolicy | None = None,
        runner: Callable[[Engine], StepRunner] = StepRunner,
    ) -> None:
        """See `Verifier`."""
        super().__init__(telemetry)
        self._config = config
        self._policy = policy
        self._runner = runner
        self._native = native_lookups(config.compile_cache) if config.ngram == "on" else None
        self._verifier: Verifier

    def begin(self, loaded: LoadedModel, on_death: Callable[[BaseException], None]) -> DeviceThread:
        """See `WorkerServicer.begin`. Raises UnsupportedModelError if the n-gram table or a draft model cannot be used
        with the target."""
        if loaded.beside is not None:
            loaded = replace(loaded, info=loaded.info._replace(draft_model=loaded.beside.info.name))
        recent = self._config.recent_answers
        static = load_ngrams_of(loaded.info, self._config.ngram_table)
        drafter = None if loaded.beside is None else own_drafter(loaded.beside, loaded.info, self._runner)
        make = Verifier if drafter is None else partial(DraftingVerifier, drafter=drafter)
        self._verifier = make(
            loaded.engine,
            loaded.info.eos_token_ids,
            max_queue=self._config.max_queue,
            ngram_table=ngram_tables(self._native, static) if self._config.ngram == "on" else None,
            recent=None if recent == "off" else RecentAnswersByTenant(has_common=recent == "all"),
            policy=self._policy,
            runner=self._runner,
        )
        return self._take_over(loaded, self._verifier, on_death)

    @rpc_errors
    async def Verify(self, request: Any, context: ServicerContext) -> None:
        """Serves the sessions of one coordinator."""
        self._require()
        await self._host(context, VERIFY, self._open)

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

    async def _open(self, opening: VerifyOpen, outbox: Outbox[VerifyEvent]) -> ServedVerification:
        info = self._require().info
        check_verify_open(opening, info.vocab_size, info.max_context)
        grammar = await self._grammars.state(
            opening.sampling.grammar, opening.token_ids[opening.num_prompt_tokens :], eos_last=opening.ignore_eos
        )
        session = VerifyStream(opening, outbox, grammar)
        trace = SessionTrace(self._telemetry, names.SPAN_VERIFY_SESSION, opening.session_id, opening.trace)
        self._device.submit(partial(self._verifier.open, session))
        return ServedVerification(self._verifier, self._device, session, trace)
