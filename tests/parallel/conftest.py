"""Fixtures of the tests with several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.worker.config import keep_ranks_on_loopback


@pytest.fixture(autouse=True, scope="package")
def on_loopback() -> Iterator[None]:
    """The ranks meet on this machine alone, as those that a worker starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            patch.delenv(name, raising=False)
        keep_ranks_on_loopback()
        yield


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests save their models."""
    return tmp_path_factory.mktemp("divided")
