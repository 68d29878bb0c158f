"""A seat at the drafter that the core chooses among the replicas of a pool."""

from __future__ import annotations

import time
from collections.abc import Sequence

from coordinator.replica import Replica, Seat
from coordinator.workers import summary
from outrider.core.coordinate.drafter_bandit import DrafterBandit, Trial
from outrider.core.coordinate.drafter_choice import (
    DrafterChoice,
    DrafterDemand,
    DrafterStanding,
    choose,
    refusal_of,
)
from outrider.core.protocol.errors import WorkerUnavailableError


def take_drafter(found: Sequence[Replica], bandit: DrafterBandit, demand: DrafterDemand) -> tuple[Seat, Trial]:
    """A seat at the drafter of `found`, which is not empty, that is worth most to the session, and the bandit's trial.

    Raises WorkerUnavailableError, which says why, if no drafter should be used.
    """
    choice = choose(list(map(_standing, found)), bandit, demand, time.monotonic())
    if not isinstance(choice, DrafterChoice):
        raise WorkerUnavailableError(f"no draft service can be used ({summary(choice)})")
    return found[choice.place].take(demand.num_tokens), choice.trial


def may_take(replica: Replica, demand: DrafterDemand) -> bool:
    """Whether a drafter that serves may get such a session."""
    return refusal_of(_standing(replica), demand, time.monotonic()) is None


def _standing(replica: Replica) -> DrafterStanding:
    model = replica.model
    return DrafterStanding(
        replica.address,
        replica.replica_state,
        replica.breaker,
        (model.name, model.num_parameters) if model is not None else None,
        model.max_context if model is not None else 0,
    )
