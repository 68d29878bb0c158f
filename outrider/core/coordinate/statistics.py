"""Raw counts of what speculation did in one session, and one table of them. Rates are derived by whoever reads them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Final, NamedTuple


@dataclass(slots=True, kw_only=True)
class SpeculationCounts:
    """The counts that go to the client. `COUNTERS` tells what each of them means, and under which names it is told."""

    num_rounds: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_rollbacks: int = 0
    num_drafted_nodes: int = 0
    num_stale_nodes: int = 0
    num_rejections: int = 0
    num_recovered_token_hits: int = 0
    num_bonuses: int = 0
    num_bonus_hits: int = 0
    num_prompt_lookup_tokens: int = 0
    num_accepted_prompt_lookup_tokens: int = 0
    num_prediction_tokens: int = 0
    num_accepted_prediction_tokens: int = 0


class Counter(NamedTuple):
    """One of the counts, and how it is told."""

    field: str
    """In `SpeculationCounts` and in the message of that name in generation.proto."""
    unit: str
    """In braces, as OpenTelemetry writes the units of counts."""
    about: str
    metric: str = ""
    """Empty if no metric tells it; the attribute of a request's span then does not either."""
    row: str = ""
    """What a table for people calls it; empty if it has no row of its own."""
    whole: str = ""
    """The count of which a table tells it as a share; empty if it stands alone."""
    of_what: str = ""
    """Words for what `whole` counts."""

    @property
    def attribute(self) -> str:
        """Name of the attribute of a request's span."""
        return f"outrider.{self.field}" if self.metric else ""


COUNTERS: Final[Sequence[Counter]] = (
    Counter("num_rounds", "{round}", "Verdicts", "outrider.rounds", row="rounds"),
    Counter(
        "num_draft_tokens", "{token}", "Draft tokens that the target scored", "outrider.spec_decode.num_draft_tokens"
    ),
    Counter(
        "num_accepted_tokens",
        "{token}",
        "Draft tokens that the target accepted",
        "outrider.spec_decode.num_accepted_tokens",
    ),
    Counter(
        "num_prompt_lookup_tokens",
        "{token}",
        "Draft tokens among those scored that the verifier had looked up",
        "outrider.prompt_lookup.tokens",
    ),
    Counter(
        "num_accepted_prompt_lookup_tokens",
        "{token}",
        "Those of them that the target accepted",
        "outrider.accepted.prompt_lookup.tokens",
        row="prompt lookup",
        whole="num_prompt_lookup_tokens",
        of_what="accepted",
    ),
    Counter(
        "num_prediction_tokens",
        "{token}",
        "Draft tokens among those scored that the verifier had taken from the request's prediction",
        "outrider.prediction.tokens",
    ),
    Counter(
        "num_accepted_prediction_tokens",
        "{token}",
        "Those of them that the target accepted",
        "outrider.accepted.prediction.tokens",
        row="prediction",
        whole="num_prediction_tokens",
        of_what="accepted",
    ),
    Counter(
        "num_rejections",
        "{verdict}",
        "Verdicts whose next token was recovered after a rejection",
        "outrider.rejections",
    ),
    Counter(
        "num_recovered_token_hits",
        "{verdict}",
        "Rejections whose recovered token had been drafted when the verdict arrived; what follows it stayed good",
        "outrider.recovered_token.hits",
        row="recovered-token hits",
        whole="num_rejections",
        of_what="rejections",
    ),
    Counter(
        "num_bonuses",
        "{verdict}",
        "Verdicts whose next token was a bonus after a path accepted to its end",
        "outrider.bonuses",
    ),
    Counter(
        "num_bonus_hits",
        "{verdict}",
        "Bonus tokens that had been drafted when the verdict arrived",
        "outrider.bonus.hits",
        row="bonus hits",
        whole="num_bonuses",
        of_what="bonus tokens",
    ),
    Counter(
        "num_rollbacks",
        "{rollback}",
        "Verdicts that voided the drafter's guesses",
        "outrider.rollbacks",
        row="rollbacks",
    ),
    Counter("num_drafted_nodes", "{node}", "Nodes that the drafter sent", "outrider.drafted.nodes"),
    Counter(
        "num_stale_nodes",
        "{node}",
        "Draft nodes that arrived, at coordinator or verifier, after their place had been decided otherwise",
        "outrider.stale.nodes",
        row="stale nodes",
        whole="num_drafted_nodes",
        of_what="drafted",
    ),
)
"""Every count once. The wire, metrics, span attributes and the closing table of the command line follow from it."""


def accepted_by_position(acceptance_histogram: Sequence[int]) -> Sequence[int]:
    """At index i the number of rounds that accepted more than i draft tokens."""
    return [*itertools.accumulate(reversed(acceptance_histogram[1:]))][::-1]


@dataclass(slots=True, kw_only=True)
class Speculation(SpeculationCounts):
    """What speculation did for one completion, as its client is told."""

    acceptance_length: float = 0.0
    """Tokens committed per round, the next token included; 0 before the first round."""
    acceptance_histogram: tuple[int, ...] = ()
    """At index i the number of rounds that accepted i draft tokens."""

    @property
    def acceptance_by_depth(self) -> tuple[float, ...]:
        """At index i the share of rounds that accepted more than i draft tokens."""
        num_rounds = sum(self.acceptance_histogram)
        return tuple(num_accepted / num_rounds for num_accepted in accepted_by_position(self.acceptance_histogram))

    @property
    def acceptance_rate(self) -> float:
        """Accepted draft tokens per scored draft token; 0 if none was scored."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


def total(parts: Sequence[Speculation]) -> Speculation:
    """What speculation did in several completions, or parts of one, together."""
    counts = {counter.field: sum(getattr(part, counter.field) for part in parts) for counter in COUNTERS}
    num_committed = sum(part.acceptance_length * part.num_rounds for part in parts)
    histograms = itertools.zip_longest(*(part.acceptance_histogram for part in parts), fillvalue=0)
    return Speculation(
        **counts,
        acceptance_length=num_committed / counts["num_rounds"] if counts["num_rounds"] else 0.0,
        acceptance_histogram=tuple(sum(rounds) for rounds in histograms),
    )


@dataclass(slots=True, kw_only=True)
class SpeculationStatistics(SpeculationCounts):
    """All that is counted of one session, round by round; durations are sums by the worker's own clock."""

    num_committed_tokens: int = 0
    """Accepted and next tokens."""
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

    @property
    def speculation(self) -> Speculation:
        """What the client is told of it."""
        return Speculation(
            **{counter.field: getattr(self, counter.field) for counter in COUNTERS},
            acceptance_length=self.acceptance_length,
            acceptance_histogram=tuple(self.acceptance_histogram),
        )
