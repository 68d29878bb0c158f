"""A draft worker without a model, for any target. Imports no torch."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from ctypes import PyDLL
from functools import partial

from draft_service.config import DraftConfig
from draft_service.ngram_drafter import NgramDrafter
from draft_service.servicer import DraftServicer
from outrider import PROTOCOL_VERSION
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.core.propose.ngram_static import VOCAB_SIZE_MAX
from outrider.core.protocol.messages import ModelInfo
from outrider.rpc.process import run_process
from outrider.rpc.serve import serve
from outrider.rpc.server import Door, Service
from outrider.telemetry.setup import Telemetry
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server
from outrider.worker.access import access
from outrider.worker.lookups import native_lookups, ngram_tables
from outrider.worker.ngram_file import NgramFile, load_ngrams


def run_without_model(config: DraftConfig, telemetry: Telemetry, doors: Sequence[Door]) -> None:
    """Runs the worker to its end. Exits with a sentence and status 1 if it cannot serve."""
    native = native_lookups(config.compile_cache)
    run_process(config.cores, partial(_serve, config, telemetry, doors, native))


def begin(servicer: DraftServicer, config: DraftConfig, file: NgramFile | None, native: PyDLL | None = None) -> None:
    """Has `servicer` draft from now on, for the vocabulary of `file` alone if there is one, by `native` look-ups or
    those in Python."""
    info = ModelInfo(
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
    tables = ngram_tables(native, file.table if file is not None else None)
    drafter = NgramDrafter(info.instance_id, info.max_sessions, tables)
    servicer.draft_by(drafter)
    drafter.on_change = servicer.serve(info, drafter.load).touch


async def _serve(config: DraftConfig, telemetry: Telemetry, doors: Sequence[Door], native: PyDLL | None) -> None:
    servicer = DraftServicer(telemetry)
    begin(servicer, config, load_ngrams(config.ngram_table) if config.ngram_table else None, native)
    service = Service("outrider.v1.DraftService", add_DraftServiceServicer_to_server, servicer, on_stop=servicer.drain)
    transport, guards = access(config, telemetry.instruments)
    await serve(config, service, transport, doors, guards, reflection=config.reflection)
