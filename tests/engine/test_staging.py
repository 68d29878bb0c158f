"""Staging memory beside a device that reads it late: on a virtual clock, and each copy finds what was staged for it."""

from __future__ import annotations

import random
from collections import deque
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from outrider.engine import transfer
from outrider.engine.staging import Staging

HALF_BYTES = 1024


class Copy(NamedTuple):
    """Something that the device will read."""

    source: Tensor
    expected: list[int]
    ends: float


class LateDevice:
    """Copies take their time, one after the other, and read memory when they end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_waits = 0
        """Times that the host waited for an event that had not passed."""
        self._queued: deque[Copy] = deque()
        self._free = 0.0

    def allocate(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def copy(self, source: Tensor, seconds: float) -> None:
        """Queues a copy of what stands there now."""
        self._free = max(self._free, self.now) + seconds
        self._queued.append(Copy(source, source.tolist(), self._free))

    def record(self) -> Event:
        return Event(self, self._free)

    def advance(self, until: float) -> None:
        self.now = max(self.now, until)
        while self._queued and self._queued[0].ends <= self.now:
            copy = self._queued.popleft()
            assert copy.source.tolist() == copy.expected, "it was overwritten before the device had read it"


class Event:
    def __init__(self, device: LateDevice, passes: float) -> None:
        self._device, self._passes = device, passes

    def synchronize(self) -> None:
        self._device.num_waits += self._passes > self._device.now
        self._device.advance(self._passes)


class NoEvent:
    """Of a device that says that it is done, and is not."""

    def synchronize(self) -> None:
        pass


def stage_at_random(device: LateDevice, staging: Staging, seed: int, copy_seconds: float) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        dtype = rng.choice([torch.int32, torch.int64, torch.float64])
        content = torch.tensor([rng.randrange(1000) for _ in range(rng.randrange(40))], dtype=dtype)
        place = staging.stage(content)
        assert place is not None
        assert place.dtype == content.dtype
        assert torch.equal(place, content)
        device.copy(place, rng.random() * copy_seconds)
        device.advance(device.now + rng.random())
    device.advance(device.record()._passes)


@pytest.mark.parametrize("copy_seconds", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_overwritten_before_the_device_has_read_it(seed: int, copy_seconds: float) -> None:
    device = LateDevice()
    stage_at_random(device, Staging(device.allocate, device.record, HALF_BYTES), seed, copy_seconds)
    assert (device.num_waits > 0) == (copy_seconds > 1.0), "the host waits for a slow device, and for no other"


def test_without_events_this_device_would_find_something_else() -> None:
    device = LateDevice()
    with pytest.raises(AssertionError, match="overwritten"):
        stage_at_random(device, Staging(device.allocate, NoEvent, HALF_BYTES), 0, 50.0)


def test_a_half_is_left_when_it_is_full_and_taken_again_when_it_was_read() -> None:
    device = LateDevice()
    staging = Staging(device.allocate, device.record, HALF_BYTES)
    places: list[Tensor] = []
    for number in range(5):
        place = staging.stage(torch.full((HALF_BYTES // 16,), number, dtype=torch.int64))  # half of a half
        assert place is not None
        device.copy(place, 1.0)
        places.append(place)
        # Two halves hold four of these. The fifth waits for the first two, not for the others.
        assert (device.num_waits, device.now) == ((0, 0.0) if number < 4 else (1, 2.0))
    assert len({place.data_ptr() for place in places}) == 4
    assert places[4].data_ptr() == places[0].data_ptr()


def test_what_is_longer_than_a_half_is_not_for_it() -> None:
    device = LateDevice()
    staging = Staging(device.allocate, device.record, HALF_BYTES)
    assert staging.stage(torch.zeros(HALF_BYTES + 1, dtype=torch.uint8)) is None
    whole = staging.stage(torch.ones(HALF_BYTES, dtype=torch.uint8))
    assert whole is not None
    assert len(whole) == HALF_BYTES


def test_places_begin_where_any_type_may_stand_and_keep_their_shape() -> None:
    device = LateDevice()
    staging = Staging(device.allocate, device.record, HALF_BYTES)
    first = staging.stage(torch.ones(3, dtype=torch.uint8))
    table = staging.stage(torch.arange(6).view(2, 3))
    assert first is not None
    assert table is not None
    assert table.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (table.data_ptr() - first.data_ptr()) % 64 == 0


def test_what_goes_to_a_gpu_is_staged_unless_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LateDevice()
    staging = Staging(device.allocate, device.record, HALF_BYTES)
    pinned = torch.zeros(1)
    monkeypatch.setattr(transfer, "_staging", lambda device: staging)
    monkeypatch.setattr(Tensor, "pin_memory", lambda content: pinned)
    content = torch.arange(8)
    place = transfer.staged(content, torch.device("cuda"))
    assert torch.equal(place, content)
    assert place.untyped_storage().data_ptr() == staging._halves[0].untyped_storage().data_ptr()
    assert transfer.staged(torch.zeros(HALF_BYTES), torch.device("cuda")) is pinned
