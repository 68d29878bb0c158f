"""The cores that a worker borrows: those that are not its own and that it may run on."""

from __future__ import annotations

import os

import pytest

from outrider.core.protocol.errors import OutriderError
from outrider.worker.config import WorkerConfig
from outrider.worker.threads import borrowed_cores

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")


def borrowed(cores: str, cores_batch: str) -> list[int]:
    settings = {"model": "m", "listen": "", "cores": cores, "cores_batch": cores_batch}
    return list(borrowed_cores(WorkerConfig.model_validate(settings)))


def test_own_cores_are_not_borrowed() -> None:
    first, *others = sorted(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    assert borrowed(str(first), ",".join(map(str, [first, *others]))) == others
    assert borrowed(str(first), str(first)) == borrowed(str(first), "") == []
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("core", ["100000", "99999999999999999999"])
def test_a_core_that_is_not_there_is_refused(core: str) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(OutriderError, match=f"--cores-batch {core}: this process may not run on all of them"):
        borrowed("", core)
    assert os.sched_getaffinity(0) == before
