"""`python -m verify_service`: one verify worker."""

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
    end_at_once_unless_serving("verify_service")  # before what follows imports a lot

from outrider.rpc.process import last_word
from outrider.telemetry.logging import set_up_logging
from outrider.telemetry.ring import SpanRing
from outrider.telemetry.setup import set_up
from outrider.v1.verify_pb2_grpc import add_VerifyServiceServicer_to_server
from outrider.worker.config import keep_ranks_on_loopback, place
from outrider.worker.scraping import doors, exposition
from verify_service.config import VerifyConfig


def main() -> None:
    """Parses flags and OUTRIDER_* variables, then serves until SIGTERM; as a rank beside the one that serves, follows
    it."""
    config = VerifyConfig.from_command_line("python -m verify_service")
    set_up_logging("verify", json=not sys.stderr.isatty())
    if config.num_ranks > 1:
        found = place()
        if found is None:
            keep_ranks_on_loopback()
        elif found.rank:
            from outrider.worker.following import follow

            follow(config)
    exposed = exposition(config)
    os.environ |= config.compiler_environment() | os.environ  # before what follows imports torch
    with last_word():
        telemetry = set_up("outrider-verify", environ=os.environ, exposition=exposed, ring=SpanRing())
    try:
        # Imported where the settings are known to be good, and torch to be installed.
        from outrider.worker.serving import run
        from verify_service.own_drafter import draft_settings, target_settings
        from verify_service.servicer import VerifyServicer

        servicer = VerifyServicer(config, telemetry)
        run(
            target_settings(config),
            "outrider.v1.VerifyService",
            add_VerifyServiceServicer_to_server,
            servicer,
            telemetry.instruments,
            doors(config, exposed, telemetry.instruments),
            draft_settings(config),
        )
    finally:
        telemetry.shut_down()


if __name__ == "__main__":
    main()
