"""Completions count against the most allowed for as long as their request runs."""

from __future__ import annotations

import pytest

from coordinator.admission import Admission
from outrider.core.protocol.errors import QueueFullError


def test_what_is_admitted_counts_until_it_ends() -> None:
    admission = Admission(3)
    with admission.admitted(2):
        assert admission.num_running == 2
        admission.require_room(1)
        with pytest.raises(QueueFullError, match="2 completions are running and 3 the most allowed"):
            admission.require_room(2)
        with pytest.raises(QueueFullError), admission.admitted(2):
            pytest.fail("it was admitted")
        assert admission.num_running == 2
    assert admission.num_running == 0


def test_an_error_gives_the_room_back() -> None:
    admission = Admission(1)
    with pytest.raises(KeyError), admission.admitted(1):
        raise KeyError
    assert admission.num_running == 0
