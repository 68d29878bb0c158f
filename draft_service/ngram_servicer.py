"""DraftService without a model: n-gram guesses for any target. Imports no torch."""

from __future__ import annotations

import time
import uuid
from contextlib import aclosing
from functools import partial
from typing import Any

import structlog

from draft_service.config import DraftConfig
from draft_service.ngram_drafter import NgramDrafting
from outrider import PROTOCOL_VERSION
from outrider.core.draft.session import DraftEstimates
from outrider.core.estimate.confidence import NGRAM_PROBABILITIES, ngram_bin
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.core.propose.ngram_static import VOCAB_SIZE_MAX
from outrider.core.protocol.errors import ProtocolViolationError, SlotsExhaustedError
from outrider.core.protocol.messages import DraftOpen, ModelInfo, Opened, WorkerLoad
from outrider.core.protocol.validation import check_draft_open
from outrider.rpc import wire
from outrider.rpc.process import run_process
from outrider.rpc.server import Server, Service
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.streams import EOF
from outrider.telemetry import names
from outrider.telemetry.setup import Telemetry
from outrider.v1 import common_pb2, draft_pb2_grpc
from outrider.worker.load import LoadBoard
from outrider.worker.ngram_file import NgramFile, load_ngrams
from outrider.worker.trace import SessionTrace

_log = structlog.get_logger()


class NgramServicer(draft_pb2_grpc.DraftServiceServicer):
    """One Draft stream is one session. Each command is answered on the event loop, before the next one is read."""

    def __init__(self, config: DraftConfig, file: NgramFile | None, telemetry: Telemetry) -> None:
        """Backs every session's own table with that of `file`, and then drafts for its vocabulary alone."""
        self._telemetry = telemetry
        self._static = file.table if file is not None else None
        self._estimates = DraftEstimates(NGRAM_PROBABILITIES, ngram_bin)
        self._num_sessions = 0
        self._board = LoadBoard(self._load)
        self._info = ModelInfo(
            name=NGRAM_MODEL,
            model_type=NGRAM_MODEL,
            vocab_size=VOCAB_SIZE_MAX,
            tokenizer_sha256=file.tokenizer_sha256 if file is not None else "",
            eos_token_ids=(),
            max_context=config.max_context,
            max_sessions=config.max_sessions,
            num_parameters=0,
            dtype="",
            device="cpu",
            protocol_version=PROTOCOL_VERSION,
            instance_id=uuid.uuid4().hex,
        )
        telemetry.instruments.observe_load(self._load, model=NGRAM_MODEL)

    @rpc_errors
    async def Draft(self, request: Any, context: ServicerContext) -> None:
        """Opens with the first command. At a half-close everything that the credit allows has been drafted."""
        message = await context.read()
        opening = wire.decode_draft_command(message) if message is not EOF else None
        if not isinstance(opening, DraftOpen):
            raise ProtocolViolationError("a Draft stream begins with `open`; send it first")
        check_draft_open(opening, self._info.vocab_size, self._info.max_context)
        if self._num_sessions >= self._info.max_sessions:
            raise SlotsExhaustedError(
                f"all {self._info.max_sessions} sessions are taken; try again later or raise --max-sessions of this "
                "worker"
            )
        self._num_sessions += 1
        self._board.touch()
        try:
            with SessionTrace(self._telemetry, names.SPAN_DRAFT_SESSION, opening.session_id, opening.trace) as trace:
                await self._draft(opening, context, trace)
        finally:
            self._num_sessions -= 1
            self._board.touch()

    @rpc_errors
    async def GetModelInfo(
        self, request: common_pb2.GetModelInfoRequest, context: ServicerContext
    ) -> common_pb2.GetModelInfoResponse:
        """What this worker serves."""
        return common_pb2.GetModelInfoResponse(model=wire.encode_model_info(self._info))

    @rpc_errors
    async def GetLoad(self, request: common_pb2.GetLoadRequest, context: ServicerContext) -> None:
        """How busy this worker is, until the caller has heard enough."""
        async with aclosing(self._board.watch()) as loads:
            async for load in loads:
                await context.write(wire.encode_load(load))

    def drain(self) -> None:
        """Ends streams that serve no session, when the server begins to stop."""
        self._board.close()

    def _load(self) -> WorkerLoad:
        """It keeps no keys and values, and nothing that is to be read waits."""
        return WorkerLoad(
            instance_id=self._info.instance_id,
            num_sessions=self._num_sessions,
            num_queued=0,
            num_queued_tokens=0,
            num_kv_tokens=0,
            num_free_kv_tokens=0,
            step_ms=0.0,
        )

    async def _draft(self, opening: DraftOpen, context: ServicerContext, trace: SessionTrace) -> None:
        await context.write(wire.encode_draft_event(Opened(len(opening.token_ids))))
        session = NgramDrafting(opening, self._estimates, self._static)
        while True:
            started_ns = time.time_ns()
            while (window := session.draft()) is not None:
                await context.write(wire.encode_draft_event(window))
                if trace.records_steps:
                    attributes = {names.STEP_NUM_NODES: len(window)}
                    trace.step(names.SPAN_DRAFT_STEP, started_ns, time.time_ns(), attributes)
                started_ns = time.time_ns()
            message = await context.read()
            if message is EOF:
                return
            command = wire.decode_draft_command(message)
            if isinstance(command, DraftOpen):
                raise ProtocolViolationError("`open` was sent already; open another stream for another session")
            session.commit(command)


def run_without_model(config: DraftConfig, telemetry: Telemetry) -> None:
    """Runs a draft worker without a model to its end. Exits with a sentence and status 1 if it cannot serve."""
    run_process(config.cores, partial(_serve, config, telemetry))


async def _serve(config: DraftConfig, telemetry: Telemetry) -> None:
    file = load_ngrams(config.ngram_table) if config.ngram_table else None
    servicer = NgramServicer(config, file, telemetry)
    server = Server(
        Service("outrider.v1.DraftService", draft_pb2_grpc.add_DraftServiceServicer_to_server, servicer),
    )
    server.on_stop(servicer.drain)
    port = await server.start(config.listen)
    _log.info("listening", address=config.listen, port=port)
    server.set_ready(True)
    _log.info("ready", port=port)
    await server.run_until_signalled(config.drain_seconds)
