"""Which of the drafters that serve gets a session, and why none does."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outrider.core.coordinate.circuit_breaker import CircuitBreaker
from outrider.core.coordinate.drafter_bandit import DrafterBandit, Trial
from outrider.core.coordinate.placement import DrafterCandidate, ReplicaState, choose_drafter, overload
from outrider.core.protocol.refusal import Refusal


class DrafterStanding(NamedTuple):
    """One of the drafters, as its coordinator knows it."""

    name: str
    """What refusals call it."""
    replica_state: ReplicaState
    breaker: CircuitBreaker
    model: Hashable
    """What drafters of one draft model have in common."""
    max_context: int
    """Longest line that it takes, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterDemand:
    """What a session asks of its drafter."""

    num_tokens: int
    """Length of its line."""
    max_length: int
    """Most tokens that its line may come to have."""
    greedy: bool
    verify_step_ms: float
    """How long a step takes at whoever decides; 0 while unknown."""


class DrafterChoice(NamedTuple):
    """A drafter has been chosen."""

    place: int
    """Index among those that were offered."""
    trial: Trial
    """The bandit's, which has begun, as has the probe of the drafter's breaker if it was half-open."""


def choose(
    standings: Sequence[DrafterStanding], bandit: DrafterBandit, demand: DrafterDemand, now: float
) -> DrafterChoice | Sequence[Refusal]:
    """The drafter that is worth most to the session, or why each of them is none for it. `now` is by the breakers'
    clock, in seconds."""
    usable: list[int] = []
    candidates: list[DrafterCandidate] = []
    refusals: list[Refusal] = []
    for index, standing in enumerate(standings):
        refusal = refusal_of(standing, demand, now)
        if refusal is not None:
            refusals.append(Refusal(f"{standing.name}: {refusal}"))
        else:
            usable.append(index)
            worth = bandit.worth(standing.model, greedy=demand.greedy)
            candidates.append(DrafterCandidate(standing.replica_state, worth, standing.breaker.num_failures))
    if not usable:
        return refusals
    index = usable[choose_drafter(candidates, demand.verify_step_ms)]
    standings[index].breaker.begin()
    return DrafterChoice(index, bandit.begin(standings[index].model, greedy=demand.greedy))


def refusal_of(standing: DrafterStanding, demand: DrafterDemand, now: float) -> Refusal | None:
    """Why a drafter that serves should not get such a session at `now`; None if it may."""
    return (
        standing.breaker.refusal(now)
        or _short_context(standing.max_context, demand.max_length)
        or overload(standing.replica_state, demand.num_tokens, demand.verify_step_ms)
    )


def _short_context(max_context: int, max_length: int) -> Refusal | None:
    if max_context >= max_length:
        return None
    return Refusal(f"its context is {max_context} tokens and the request's {max_length}")
