"""A rank that follows: it has a part of the model, and neither a port nor a scheduler."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import structlog
import transformers

from outrider.core.protocol.errors import OutriderError
from outrider.engine.device_thread import CPU_NICENESS
from outrider.engine.load.folder import check_folder, resolve_folder
from outrider.machine.leaving import leave
from outrider.worker.building import build
from outrider.worker.config import WorkerConfig
from outrider.worker.joining import device_of, join
from outrider.worker.threads import take_threads

_log = structlog.get_logger()


def follow(config: WorkerConfig) -> NoReturn:
    """Takes rank 0's steps until it dismisses its ranks. Ends the process: with a sentence and status 1 if it cannot
    follow, or if rank 0 is lost."""
    try:
        _follow(config)
    except OutriderError as error:
        _log.error("cannot follow", reason=str(error))
        leave(1)
    except RuntimeError as error:
        _log.error("cannot follow", reason="rank 0 is lost, or another one", error=str(error).partition("\n")[0])
        leave(1)
    leave(0)


def _follow(config: WorkerConfig) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    take_threads(config)
    device = device_of(config)
    if device.type == "cpu":
        os.setpriority(os.PRIO_PROCESS, 0, CPU_NICENESS)  # as rank 0's device thread, which waits for this one
    folder = resolve_folder(config.model)
    check_folder(folder, config.weights)
    ranks = join(config)
    for number in (signal.SIGTERM, signal.SIGINT):  # rank 0 drains, and says when it is over
        signal.signal(number, signal.SIG_IGN)
    engine = build(config, folder, device, ranks=ranks).engine
    _log.info("following", rank=ranks.rank, of=ranks.num_ranks, device=str(device))
    engine.follow(ranks.steps())
