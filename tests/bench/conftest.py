"""Fixtures of the benchmark's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.conftest import native_operators

__all__ = ["native_operators"]


@pytest.fixture(scope="package")
def unhurried() -> Iterator[None]:
    """A busy machine's silence is no fault of a worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTRIDER_SILENCE_SECONDS", "60")
        yield
