"""Fixtures of the tests of kernels: Triton has to be there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="needs Triton, which there is for Linux alone")

from outrider.engine import native
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.sample import fused
from outrider.worker import step_runner
from tests.engine.gpu.interpreter import interpreted
from tests.engine.gpu.launches import KERNELS, Launches, logged


@pytest.fixture
def interpreter() -> Iterator[None]:
    """Kernels run on the CPU."""
    with interpreted(*KERNELS):
        yield


@pytest.fixture
def willing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend `tree` takes any device."""
    monkeypatch.setattr(TreeAttention, "problem", classmethod(lambda cls, facts: ""))


@pytest.fixture
def willing_to_choose(willing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of tokens in one pass takes any device, too."""
    monkeypatch.setattr(native, "available", lambda device: False)
    monkeypatch.setattr(fused, "problem", lambda device: "")
    monkeypatch.setattr(step_runner, "measure", lambda engine: [])  # the interpreter's times say nothing


@pytest.fixture
def launches(interpreter: None) -> Iterator[Launches]:
    """What is launched, on the tape too."""
    with logged() as found:
        yield found
