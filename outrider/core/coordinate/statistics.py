"""Raw counts of what speculation did in one session. Rates are derived by whoever reads them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class SpeculationStatistics:
    """Counts of one session; durations are sums by the worker's own clock."""

    num_rounds: int = 0
    """Verdicts."""
    num_draft_tokens: int = 0
    """Draft tokens that the target scored."""
    num_accepted_tokens: int = 0
    """Those that it accepted."""
    num_committed_tokens: int = 0
    """Accepted and next tokens."""
    num_rollbacks: int = 0
    """Verdicts that voided the drafter's guesses."""
    num_rejections: int = 0
    """Verdicts whose next token was recovered after a rejection."""
    num_recovered_token_hits: int = 0
    """Those whose recovered token had been drafted when the verdict arrived: what was drafted below it stayed good."""
    num_bonuses: int = 0
    """Verdicts whose next token was a bonus after a path that was accepted to its end."""
    num_bonus_hits: int = 0
    """Those whose bonus token had been drafted when the verdict arrived."""
    num_prompt_lookup_tokens: int = 0
    """Of the scored draft tokens those that the verifier looked up itself."""
    num_accepted_prompt_lookup_tokens: int = 0
    """Of the accepted ones."""
    num_drafted_nodes: int = 0
    """Nodes that the drafter sent."""
    num_stale_nodes: int = 0
    """Nodes that arrived, at the coordinator or at the verifier, after their place had been decided otherwise."""
    verify_ms: float = 0.0
    verify_wait_ms: float = 0.0
    draft_ms: float = 0.0
    drafted_by_round: list[int] = field(default_factory=list[int])
    """Draft tokens scored in each round."""
    accepted_by_round: list[int] = field(default_factory=list[int])
    """Draft tokens accepted in each round."""

    def __add__(self, other: SpeculationStatistics) -> SpeculationStatistics:
        """Both sessions together; the rounds of `other` come after these."""
        names = [each.name for each in fields(self)]
        return SpeculationStatistics(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def acceptance_length(self) -> float:
        """Tokens committed per round, the next token included; 0 before the first round."""
        return self.num_committed_tokens / self.num_rounds if self.num_rounds else 0.0

    @property
    def acceptance_histogram(self) -> list[int]:
        """At index i the number of rounds that accepted i draft tokens."""
        histogram = [0] * (max(self.accepted_by_round, default=-1) + 1)
        for num_accepted in self.accepted_by_round:
            histogram[num_accepted] += 1
        return histogram
