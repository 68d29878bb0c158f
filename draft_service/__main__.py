"""`python -m draft_service`: one draft worker."""

from __future__ import annotations

import os
import sys

from outrider.machine.present_folder import leave_out_present_folder
from outrider.machine.sigterm import end_at_once_unless_serving
from outrider.machine.standard_streams import open_standard_streams
from outrider.rpc.environment import GRPC_ENVIRONMENT

os.environ |= GRPC_ENVIRONMENT | os.environ  # before what follows imports grpc
if __name__ == "__main__":
    leave_out_present_folder(sys.path, os.environ)
    open_standard_streams()
    end_at_once_unless_serving("draft_service")  # before what follows imports a lot

from draft_service.config import DraftConfig
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.rpc.process import last_word
from outrider.telemetry.logging import set_up_logging
from outrider.telemetry.ring import SpanRing
from outrider.telemetry.setup import set_up
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server
from outrider.worker.scraping import doors, exposition


def main() -> None:
    """Parses flags and OUTRIDER_* variables, then serves until SIGTERM."""
    config = DraftConfig.from_command_line("python -m draft_service")
    set_up_logging("draft", json=not sys.stderr.isatty())
    exposed = exposition(config)
    os.environ |= config.compiler_environment() | os.environ  # before what follows imports torch
    with last_word():
        telemetry = set_up("outrider-draft", environ=os.environ, exposition=exposed, ring=SpanRing())
    try:
        # Imported where it is needed: without a model torch, hundreds of megabytes, stays out of the process.
        if config.model == NGRAM_MODEL:
            from draft_service.without_model import run_without_model

            run_without_model(config, telemetry, doors(config, exposed, telemetry.instruments))
        else:
            from draft_service.model_servicer import ModelDraftServicer
            from outrider.worker.serving import run

            servicer = ModelDraftServicer(telemetry, parallel=config.parallel)
            run(
                config,
                "outrider.v1.DraftService",
                add_DraftServiceServicer_to_server,
                servicer,
                telemetry.instruments,
                doors(config, exposed, telemetry.instruments),
            )
    finally:
        telemetry.shut_down()


if __name__ == "__main__":
    main()
