"""What a process has loaded when it becomes ready is out of the collector's sight, once."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from outrider.machine.garbage import pass_over_loaded


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.freeze()  # as it was found; see tests/conftest.py


def test_what_lives_by_then_is_passed_over_and_what_comes_later_is_not() -> None:
    loaded = [[number] for number in range(1000)]
    pass_over_loaded()
    num_frozen = gc.get_freeze_count()
    assert num_frozen >= len(loaded)
    assert not any(each is loaded for each in gc.get_objects())
    later = [[number] for number in range(1000)]
    pass_over_loaded()
    assert gc.get_freeze_count() <= num_frozen  # some of it may have died
    assert any(each is later for each in gc.get_objects())
