"""One completion of a fleet, as its coordinator has it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bench.simulate.fleet.standing import Seat
from bench.simulate.oracle import OracleText
from bench.simulate.workers import VirtualDrafter, VirtualVerifier
from outrider.core.coordinate.drafter_bandit import Trial
from outrider.core.coordinate.session import Session


@dataclass(slots=True, eq=False)
class Completion:
    """From a client's request to its last token. Times are those of the virtual clock."""

    index: int
    text: OracleText
    session: Session
    asked_at: float
    first_at: float = math.nan
    last_at: float = math.nan
    """When the present end of the line was committed."""
    num_first_tokens: int = 0
    """Of the first round."""
    longest_gap: float = 0.0
    """Between two rounds."""
    verifier: Seat[VirtualVerifier] | None = None
    drafter: Seat[VirtualDrafter] | None = None
    trial: Trial | None = None
    is_counted: bool = False
    """Whether the speculation gate knows of it."""
    avoided: set[str] = field(default_factory=set[str])
    """Names of workers that have refused it, or that it has lost."""

    @property
    def num_tokens(self) -> int:
        """Of the answer, so far."""
        return len(self.session.line) - len(self.text.prompt)

    @property
    def decode_seconds_per_token(self) -> float:
        """Of the tokens behind the first round; 0 if there are none."""
        num_later = self.num_tokens - self.num_first_tokens
        return (self.last_at - self.first_at) / num_later if num_later else 0.0
