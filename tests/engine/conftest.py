"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from outrider.engine import native
from outrider.engine.compile.just_in_time import compiler_problem
from outrider.worker.config import WorkerConfig

CPU_PROBLEM = compiler_problem(torch.device("cpu"))

NUM_NATIVE_THREADS = 2
"""Enough for the native operators to divide their work wrongly, if they did."""


@pytest.fixture(scope="session")
def native_operators() -> None:
    """The native operators, built from their sources unless a worker on this machine has built the same before."""
    if CPU_PROBLEM:
        pytest.skip(CPU_PROBLEM)
    native.load(WorkerConfig.model_fields["compile_cache"].get_default(call_default_factory=True))


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Several for the native operators, one for everything else."""
    torch.set_num_threads(NUM_NATIVE_THREADS if "native_operators" in request.fixturenames else 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def one_thread(threads: None) -> None:
    """For the native operators too: on tiny tensors several wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(params=["torch", "native"])
def each_chooser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the sampler's own tensors choose, once the native operator."""
    if request.param == "native":
        request.getfixturevalue("native_operators")
        torch.set_num_threads(NUM_NATIVE_THREADS)
    else:
        monkeypatch.setattr(native, "available", lambda device: False)
