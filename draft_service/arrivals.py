"""Arrivals: how many commands have come for the drafter, and how many it has taken up. A run ends when they differ."""

from __future__ import annotations

from array import array

import torch

from outrider.engine.compile.levels import Interruption


class Arrivals:
    """The event loop announces, the device thread does all else, and native code may look at the number at any time."""

    def __init__(self) -> None:
        self._num_arrived = array("q", [0])
        self._num_read = 0
        self._shared = torch.frombuffer(self._num_arrived, dtype=torch.int64)  # the same memory

    def announce(self) -> None:
        """One more command waits for the device thread. Event loop only."""
        self._num_arrived[0] += 1

    def take_up(self) -> None:
        """One of them waits no longer."""
        self._num_read += 1

    @property
    def has_news(self) -> bool:
        """Whether a command waits."""
        return self._num_arrived[0] != self._num_read

    @property
    def interruption(self) -> Interruption:
        """A command comes that has not been taken up by now."""
        return Interruption(self._shared, self._num_read)
