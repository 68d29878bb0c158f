"""One measured answer of one mode to one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Round:
    """One event with tokens, as the client saw it."""

    num_tokens: int
    num_draft_tokens: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, slots=True)
class Devices:
    """What the workers did during the answer, by their own log of forward passes, in milliseconds."""

    verify_ms: float
    draft_ms: float
    both_ms: float
    """Time in which both computed."""
    num_verify_steps: int
    num_draft_steps: int
    verify_outside_ms: float
    """Time of the verifier's loop that was not in forward passes: choosing, sampling, deciding."""
    draft_outside_ms: float
    verify_idle_ms: float
    """Time between the verifier's steps: waiting for drafts, or for the wire."""
    edges_ms: float
    """Time before the verifier's first step and after its last: the request's way in and the last tokens' way out."""
    draft_step_ms: float
    """Median of the drafter's forward passes; 0 without any."""
    verify_step_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the client's clock and the answer's own statistics say."""

    first_token_ms: float
    """From the request to the first token's arrival."""
    total_ms: float
    """From the request to the last token's arrival."""
    rounds: Sequence[Round]
    token_ids: Sequence[int] | None
    """None where a server gives text alone."""
    text: str = ""
    statistics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The server's own counts and timings, by their names; empty where there are none."""
    devices: Devices | None = None

    @property
    def undrafted(self) -> str:
        """Why no drafter guessed for any of it; empty if one did, or none was wanted, or nobody says."""
        return self.statistics.get("mode_reason", "") if self.statistics.get("mode") == "target_only" else ""

    @property
    def num_tokens(self) -> int:
        """Generated tokens."""
        return sum(each.num_tokens for each in self.rounds)

    @property
    def ms_per_token(self) -> float:
        """Time per token, the reading of the prompt included."""
        return self.total_ms / self.num_tokens

    @property
    def decode_ms_per_token(self) -> float:
        """Time per token after the first round, whose tokens are not counted; 0 if there was no other round."""
        num_later = self.num_tokens - self.rounds[0].num_tokens
        return (self.total_ms - self.first_token_ms) / num_later if num_later else 0.0
