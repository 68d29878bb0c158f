"""`python -m coordinator`: the public service."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from outrider.machine.present_folder import leave_out_present_folder
from outrider.machine.sigterm import end_at_once_unless_serving
from outrider.machine.standard_streams import open_standard_streams
from outrider.rpc.environment import GRPC_ENVIRONMENT

# Before what follows imports grpc. The coordinator's encoders are its only threads that tokenize.
os.environ |= GRPC_ENVIRONMENT | {"TOKENIZERS_PARALLELISM": "false"} | os.environ
if __name__ == "__main__":
    leave_out_present_folder(sys.path, os.environ)
    open_standard_streams()
    end_at_once_unless_serving("coordinator")  # before what follows imports a lot

from coordinator.authorization import Authorization
from coordinator.config import CoordinatorConfig
from coordinator.openai.app import make_app
from coordinator.openai.authorization import OPEN_PATHS
from coordinator.openai.authorization import Authorization as HttpAuthorization
from coordinator.page.site import PATHS, add_page
from coordinator.service import GenerationService
from coordinator.servicer import GenerationServicer
from coordinator.tokens import Tokens
from coordinator.worker_connection import connect_by
from coordinator.workers import Workers
from outrider.http.server import HttpServer
from outrider.rpc.process import last_word, run_process
from outrider.rpc.serve import serve
from outrider.rpc.server import Service
from outrider.rpc.tls_context import server_context
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.telemetry.exposition import Exposition
from outrider.telemetry.logging import set_up_logging
from outrider.telemetry.ring import SpanRing
from outrider.telemetry.setup import Telemetry, set_up
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server


def main() -> None:
    """Parses flags and OUTRIDER_* variables, then serves until SIGTERM."""
    config = CoordinatorConfig.from_command_line("python -m coordinator")
    set_up_logging("coordinator", json=not sys.stderr.isatty())
    exposition = Exposition(vllm_names=config.vllm_metrics) if config.http else None
    with last_word():
        telemetry = set_up("outrider-coordinator", environ=os.environ, exposition=exposition, ring=SpanRing())
    try:
        run_process(config.cores, partial(_serve, config, telemetry, exposition))
    finally:
        telemetry.shut_down()


async def _serve(config: CoordinatorConfig, telemetry: Telemetry, exposition: Exposition | None) -> None:
    """Raises OutriderError where the settings cannot be followed."""
    on_refused = telemetry.instruments.count_refusal
    transport, tls = PLAINTEXT, None
    if config.tls_cert:
        files = TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca)
        transport, tls = Transport(files), partial(server_context, files, on_refused)
    guards, authorization = (), None
    if config.tokens:
        tokens = Tokens(Path(config.tokens))
        guards = (Authorization(tokens, on_refused),)
        authorization = partial(HttpAuthorization, tokens=tokens, on_refused=on_refused, open_paths=OPEN_PATHS | PATHS)
    workers = Workers(
        config.verify,
        config.draft,
        telemetry.instruments,
        connect_by(config),
        silence_seconds=config.silence_seconds,
    )
    generation = GenerationService(config, workers, telemetry)
    servicer = GenerationServicer(
        generation, unread_seconds=config.unread_seconds, max_requests_per_client=config.max_requests_per_client
    )
    service = Service(
        "outrider.v1.GenerationService",
        add_GenerationServiceServicer_to_server,
        servicer,
        generation.watch,
        on_grace_over=generation.end_all,
    )
    app = make_app(generation, authorization, exposition, config.unread_seconds, config.max_requests_per_client)
    add_page(app)
    doors = [HttpServer(app, config.http, tls=tls, unread_seconds=2.0 * config.unread_seconds)] if config.http else []
    await serve(config, service, transport, doors, guards, reflection=config.reflection)


if __name__ == "__main__":
    main()
