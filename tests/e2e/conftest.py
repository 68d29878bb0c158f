"""All services of these tests share one interpreter."""

import sys
from collections import Counter

import pytest

from coordinator.replica import Replica, Seat
from outrider.worker.serving import SWITCH_INTERVAL_SECONDS

sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)


@pytest.fixture
def seats(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many sessions each address has been given."""
    placed = Counter[str]()
    take = Replica.take

    def counted(replica: Replica, num_tokens: int) -> Seat:
        placed[replica.address] += 1
        return take(replica, num_tokens)

    monkeypatch.setattr(Replica, "take", counted)
    return placed
