"""Completions count against the most allowed for as long as their request runs."""

from __future__ import annotations

import pytest

from coordinator.admission import Admission, ClientAdmission
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


def test_each_client_has_a_limit_of_its_own() -> None:
    clients = ClientAdmission(1)
    with clients.admitted("ipv4:10.0.0.1"):
        with pytest.raises(QueueFullError, match="1 requests of this client"), clients.admitted("ipv4:10.0.0.1"):
            pytest.fail("it was admitted")
        with clients.admitted("ipv4:10.0.0.2"):
            pass
    with clients.admitted("ipv4:10.0.0.1"):
        pass
