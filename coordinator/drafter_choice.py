"""Which of the drafters that serve gets a session, and why none does."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from coordinator.replica import Replica, Seat
from coordinator.workers import summary
from outrider.core.coordinate.drafter_bandit import DrafterBandit, Trial
from outrider.core.coordinate.placement import DrafterCandidate, choose_drafter, overload
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.refusal import Refusal


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


def take_drafter(found: Sequence[Replica], bandit: DrafterBandit, demand: DrafterDemand) -> tuple[Seat, Trial]:
    """A seat at the drafter of `found`, which is not empty, that is worth most to the session, and the bandit's trial.

    Raises WorkerUnavailableError, which says why, if no drafter should be used.
    """
    refusals = {replica: refusal_of(replica, demand) for replica in found}
    usable = [replica for replica, refusal in refusals.items() if refusal is None]
    if not usable:
        told = [Refusal(f"{replica.address}: {refusal}") for replica, refusal in refusals.items()]
        raise WorkerUnavailableError(f"no draft service can be used ({summary(told)})")
    candidates = [
        DrafterCandidate(
            replica.replica_state, bandit.worth(_kind(replica), greedy=demand.greedy), replica.breaker.num_failures
        )
        for replica in usable
    ]
    chosen = usable[choose_drafter(candidates, demand.verify_step_ms)]
    chosen.breaker.begin()
    return chosen.take(demand.num_tokens), bandit.begin(_kind(chosen), greedy=demand.greedy)


def refusal_of(replica: Replica, demand: DrafterDemand) -> Refusal | None:
    """Why a drafter that serves should not get such a session; None if it may."""
    return (
        replica.breaker.refusal(time.monotonic())
        or _short_context(replica, demand.max_length)
        or overload(replica.replica_state, demand.num_tokens, demand.verify_step_ms)
    )


def _short_context(replica: Replica, max_length: int) -> Refusal | None:
    max_context = replica.model.max_context if replica.model is not None else 0
    if max_context >= max_length:
        return None
    return Refusal(f"its context is {max_context} tokens and the request's {max_length}")


def _kind(replica: Replica) -> Hashable:
    """What replicas of one draft model have in common."""
    return (replica.model.name, replica.model.num_parameters) if replica.model is not None else None
