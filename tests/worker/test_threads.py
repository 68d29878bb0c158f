"""The threads that a worker takes, and the cores that it borrows: not its own, and such as it may run on."""

from __future__ import annotations

import os

import pytest
import torch

from outrider.core.protocol.errors import OutriderError
from outrider.engine import native
from outrider.worker.config import WorkerConfig
from outrider.worker.threads import borrowed_cores, take_threads
from verify_service.config import VerifyConfig

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


@pytest.mark.parametrize(("num_threads", "num_ranks", "taken"), [(3, 1, 3), (3, 2, 1), (1, 2, 1), (7, 3, 2)])
def test_torch_and_the_native_operators_take_what_the_settings_say(
    num_threads: int, num_ranks: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more because the machine has more: ranks of one model divide it."""
    told: list[int] = []
    monkeypatch.setattr(native, "use_cores", lambda num, borrowed: told.append(num))
    before = torch.get_num_threads()
    try:
        take_threads(VerifyConfig(model="m", num_threads=num_threads, tensor_parallel=num_ranks))
        assert (torch.get_num_threads(), told) == (taken, [taken])
    finally:
        torch.set_num_threads(before)
