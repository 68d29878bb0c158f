"""Fixtures of the recipes' tests."""

from __future__ import annotations

from tests.engine.conftest import threads

__all__ = ["threads"]
