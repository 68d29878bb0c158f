"""Fixtures of the benchmark's tests."""

from __future__ import annotations

from tests.engine.conftest import native_operators

__all__ = ["native_operators"]
