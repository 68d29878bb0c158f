"""Fixtures of the tests of kernels: Triton has to be there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="needs Triton, which there is for Linux alone")

from outrider.engine.attention.tree import TreeAttention
from tests.engine.gpu.interpreter import interpreted
from tests.engine.gpu.launches import KERNELS


@pytest.fixture
def interpreter() -> Iterator[None]:
    """Kernels run on the CPU."""
    with interpreted(*KERNELS):
        yield


@pytest.fixture
def willing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend `tree` takes any device."""
    monkeypatch.setattr(TreeAttention, "problem", classmethod(lambda cls, facts: ""))
