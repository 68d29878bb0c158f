"""Clocks: a device's own, by events that it reaches in its order, and the host's where the host is the device."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Tells times between moments."""

    def now(self) -> Any:
        """The moment at which all that was queued so far is done."""
        ...

    def ms(self, first: Any, last: Any) -> float:
        """From one moment to another; waits for both."""
        ...


class DeviceClock:
    """Of a CUDA device. A host that queues too slowly counts: the device reaches the events later."""

    def now(self) -> torch.cuda.Event:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """See `Clock`."""
        last.synchronize()
        return first.elapsed_time(last)


class HostClock:
    """Of this process."""

    def now(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def ms(self, first: float, last: float) -> float:
        """See `Clock`."""
        return (last - first) * 1e3


def clock_of(device: torch.device) -> Clock:
    """What tells the times of that device."""
    return DeviceClock() if device.type == "cuda" else HostClock()
