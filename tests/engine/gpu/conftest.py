"""Fixtures of the tests of kernels: Triton has to be there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("triton", reason="needs Triton, which there is for Linux alone")

from outrider.engine.gpu import tree_attention
from tests.engine.gpu.interpreter import interpreted


@pytest.fixture
def interpreter() -> Iterator[None]:
    """Kernels run on the CPU."""
    with interpreted(tree_attention):
        yield
