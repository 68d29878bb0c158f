"""`python -m draft_service`: one draft worker."""

from __future__ import annotations

import os
import sys

from draft_service.config import DraftConfig
from draft_service.servicer import DraftServicer
from outrider.telemetry.logging import set_up_logging
from outrider.telemetry.setup import set_up
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server
from outrider.worker.serving import run


def main() -> None:
    """Parses flags and OUTRIDER_* variables, then serves until SIGTERM."""
    config = DraftConfig.from_command_line("python -m draft_service")
    set_up_logging("draft", json=not sys.stderr.isatty())
    telemetry = set_up("outrider-draft", environ=os.environ)
    try:
        run(config, "outrider.v1.DraftService", add_DraftServiceServicer_to_server, DraftServicer(telemetry))
    finally:
        telemetry.shut_down()


if __name__ == "__main__":
    main()
