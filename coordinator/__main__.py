"""`python -m coordinator`: the public service."""

from __future__ import annotations

import os
import sys
from functools import partial

import structlog

from outrider.rpc.environment import GRPC_ENVIRONMENT

os.environ |= GRPC_ENVIRONMENT | os.environ  # before what follows imports grpc

from coordinator.config import CoordinatorConfig
from coordinator.service import GenerationService
from coordinator.servicer import GenerationServicer
from coordinator.workers import Workers
from outrider.rpc.process import run_process
from outrider.rpc.server import Server, Service
from outrider.telemetry.logging import set_up_logging
from outrider.telemetry.setup import Telemetry, set_up
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server

_log = structlog.get_logger()


def main() -> None:
    """Parses flags and OUTRIDER_* variables, then serves until SIGTERM."""
    config = CoordinatorConfig.from_command_line("python -m coordinator")
    set_up_logging("coordinator", json=not sys.stderr.isatty())
    telemetry = set_up("outrider-coordinator", environ=os.environ)
    try:
        run_process(config.cores, partial(_serve, config, telemetry))
    finally:
        telemetry.shut_down()


async def _serve(config: CoordinatorConfig, telemetry: Telemetry) -> None:
    workers = Workers(config.verify, config.draft, lambda ready: server.set_ready(ready), telemetry.instruments)
    servicer = GenerationServicer(GenerationService(config, workers, telemetry))
    server = Server(Service("outrider.v1.GenerationService", add_GenerationServiceServicer_to_server, servicer))
    port = await server.start(config.listen)
    _log.info("listening", address=config.listen, port=port)
    workers.start()
    try:
        await server.run_until_signalled(config.drain_seconds)
    finally:
        await workers.stop()


if __name__ == "__main__":
    main()
