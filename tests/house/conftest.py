"""Fixtures of the engine's tests, for the small pieces that go through its doors."""

from tests.engine.conftest import each_chooser, native_operators

__all__ = ["each_chooser", "native_operators"]
