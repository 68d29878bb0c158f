"""The library of the look-ups, as workers have it."""

from __future__ import annotations

import shutil
from ctypes import PyDLL

import pytest

from outrider.lookup.library import COMPILERS, load
from outrider.worker.config import WorkerConfig


@pytest.fixture(scope="session")
def native() -> PyDLL:
    """Built from its source, unless a worker on this machine has built the same before."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("there is no C++ compiler")
    return load(WorkerConfig.model_fields["compile_cache"].get_default(call_default_factory=True))
