"""Arrivals: how many commands have come for the drafter, and how many it has taken up. A run ends when they differ."""

from __future__ import annotations

from array import array

import torch

from outrider.engine.compile.levels import Interruption


class Arrivals:
    """The event loop announces, the device thread does all else, and native code may look at the numbers any time."""

    def __init__(self) -> None:
        self._numbers = array("q", [0, 0])
        """How many have arrived, and how many of those made void all that was drafted just then."""
        self._num_read = 0
        self._watched: object = None
        """Whose commands may make it void: a session's that the device drafts for alone."""
        self._shared = torch.frombuffer(self._numbers, dtype=torch.int64)  # the same memory

    def announce(self, outdated: object = None) -> None:
        """One more command waits for the device thread, after which nothing is worth drafting that was begun for the
        session `outdated`. Event loop only."""
        if outdated is not None and outdated is self._watched:
            self._numbers[1] += 1
        self._numbers[0] += 1

    def take_up(self) -> None:
        """One of them waits no longer."""
        self._num_read += 1

    @property
    def has_news(self) -> bool:
        """Whether a command waits."""
        return self._numbers[0] != self._num_read

    def interruption(self, only: object = None) -> Interruption:
        """A command comes that has not been taken up by now. What is drafted is void when the session `only` becomes
        outdated, for which alone it is."""
        self._watched = only
        return Interruption(self._shared, self._num_read, self._numbers[1])
