"""One completion's rounds as the speculation gate is told of them."""

from __future__ import annotations

import time

from outrider.core.estimate.speculation_gate import SpeculationGate


class GatedRounds:
    """Takes the time between rounds that brought tokens, from the first one on."""

    def __init__(self, gate: SpeculationGate, *, greedy: bool) -> None:
        self.gate = gate
        self._greedy = greedy
        self._has_begun = False
        self._last: float | None = None

    def begin(self) -> None:
        """The completion is asked for, and would speculate."""
        self._has_begun = True
        self.gate.begin(greedy=self._greedy)

    def observe(self, num_tokens: int, *, is_gated: bool) -> None:
        """A round brought `num_tokens`. The first one tells how long the prompt took, and does not count. Another one
        counts if it `is_gated`: if the gate's other position might have changed it."""
        now = time.monotonic()
        if self._last is None:
            if self._has_begun:
                self.gate.start()
        elif is_gated:
            self.gate.observe(num_tokens, now - self._last)
        self._last = now

    def end(self) -> None:
        """No more rounds will come."""
        if self._has_begun:
            self._has_begun = False
            self.gate.end(greedy=self._greedy, has_started=self._last is not None)
