"""The threads of a worker's arithmetic on the CPU, and the cores that it borrows."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from outrider.core.protocol.errors import OutriderError
from outrider.engine import native
from outrider.worker.config import WorkerConfig
from outrider.worker.joining import place_of


def take_threads(config: WorkerConfig) -> None:
    """Has torch and the native operators use the threads of this process; ranks on one machine divide them, and borrow
    no cores. Raises OutriderError if this process may not run on a core that it is to borrow."""
    num_threads = max(1, config.num_threads // place_of(config).num_local_ranks)
    torch.set_num_threads(num_threads)
    native.use_cores(num_threads, borrowed_cores(config) if config.num_ranks == 1 else [])


def borrowed_cores(config: WorkerConfig) -> Sequence[int]:
    """Those of `cores_batch` that are not the worker's own. Raises OutriderError if it may not run on one of them."""
    own, batch = ({int(core) for core in text.split(",") if core} for text in (config.cores, config.cores_batch))
    if not (borrowed := sorted(batch - own)):
        return []
    if not hasattr(os, "sched_setaffinity"):
        raise OutriderError("--cores-batch needs Linux; leave it out")
    before = os.sched_getaffinity(0)
    try:
        for core in borrowed:
            os.sched_setaffinity(0, {core})
    except (OSError, OverflowError) as error:
        raise OutriderError(
            f"--cores-batch {config.cores_batch}: this process may not run on all of them; see `nproc` and "
            "`taskset -p $$`"
        ) from error
    finally:
        os.sched_setaffinity(0, before)
    return borrowed
