"""One completion's rounds as the speculation gate is told of them."""

from __future__ import annotations

import time

from outrider.core.coordinate.speculation_gate import SpeculationGate


class GatedRounds:
    """Tells the time of what becomes of a completion, from its place at a verifier on."""

    def __init__(self, gate: SpeculationGate, *, greedy: bool) -> None:
        self.gate = gate
        self._greedy = greedy
        self._began_at: float | None = None
        self._has_tokens = False

    def begin(self) -> None:
        """A verifier has a place for it; the next one after a loss changes nothing."""
        if self._began_at is None:
            self._began_at = time.monotonic()
            self.gate.begin(self._began_at, greedy=self._greedy)

    def observe(self, num_tokens: int, *, could_speculate: bool) -> None:
        """A round brought `num_tokens`; see `SpeculationGate.observe`."""
        now = time.monotonic()
        began_at = now if self._began_at is None else self._began_at
        first_wait = None if self._has_tokens else now - began_at
        self._has_tokens = True
        self.gate.observe(num_tokens, now, first_wait=first_wait, could_speculate=could_speculate)

    def end(self) -> None:
        """No more rounds will come."""
        if self._began_at is not None:
            self._began_at = None
            self.gate.end(time.monotonic(), greedy=self._greedy)
