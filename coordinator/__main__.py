"""`python -m coordinator`: the public service."""

from __future__ import annotations

import os
import sys
from functools import partial

from outrider.machine.sigterm import end_at_once_until_serving
from outrider.rpc.environment import GRPC_ENVIRONMENT

# Before what follows imports grpc. The coordinator's encoders are its only threads that tokenize.
os.environ |= GRPC_ENVIRONMENT | {"TOKENIZERS_PARALLELISM": "false"} | os.environ
if __name__ == "__main__":
    end_at_once_until_serving("coordinator")  # before what follows imports a lot

from coordinator.config import CoordinatorConfig
from coordinator.http import HttpServer
from coordinator.openai.app import make_app
from coordinator.service import GenerationService
from coordinator.servicer import GenerationServicer
from coordinator.worker_connection import connect_by
from coordinator.workers import Workers
from outrider.rpc.process import run_process
from outrider.rpc.serve import serve
from outrider.rpc.server import Service
from outrider.rpc.tls_context import server_context
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.telemetry.logging import set_up_logging
from outrider.telemetry.setup import set_up
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server


def main() -> None:
    """Parses flags and OUTRIDER_* variables, then serves until SIGTERM."""
    config = CoordinatorConfig.from_command_line("python -m coordinator")
    set_up_logging("coordinator", json=not sys.stderr.isatty())
    telemetry = set_up("outrider-coordinator", environ=os.environ)
    try:
        workers = Workers(config.verify, config.draft, telemetry.instruments, connect_by(config))
        generation = GenerationService(config, workers, telemetry)
        add_to_server = add_GenerationServiceServicer_to_server
        servicer = GenerationServicer(generation)
        service = Service("outrider.v1.GenerationService", add_to_server, servicer, generation.watch)
        transport, tls = PLAINTEXT, None
        if config.tls_cert:
            files = TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca)
            transport, tls = Transport(files), partial(server_context, files, telemetry.instruments.count_refusal)
        doors = [HttpServer(make_app(generation), config.http, tls)] if config.http else []
        run_process(config.cores, partial(serve, config, service, transport, doors, reflection=config.reflection))
    finally:
        telemetry.shut_down()


if __name__ == "__main__":
    main()
