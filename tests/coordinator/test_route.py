"""Which workers a request's sessions go to, over replicas whose state is given."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.replica import Replica
from coordinator.request import settle_token_ids
from coordinator.route import Route
from coordinator.workers import Workers
from outrider.core.coordinate.circuit_breaker import CircuitBreaker
from outrider.core.coordinate.drafter_bandit import DrafterBandit
from outrider.core.coordinate.placement import ReplicaState, StepTime
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.options import GenerationOptions

from .script import TARGET


class Standing:
    """A replica as a route sees it. Its seat is itself."""

    def __init__(self, address: str, model: ModelInfo = TARGET, *, num_sessions: int = 0) -> None:
        self.address = address
        self.service = "service"
        self.model = model
        self.breaker = CircuitBreaker()
        self.num_taken = num_sessions
        self.can_move = lambda: True

    @property
    def replica(self) -> Standing:
        return self

    @property
    def replica_state(self) -> ReplicaState:
        return ReplicaState(StepTime(), None, self.model.max_sessions, num_own=self.num_taken)

    def take(self, num_tokens: int) -> Standing:
        self.num_taken += 1
        return self


class Pools:
    """What a route asks of the workers: those that can be used, and where moves are counted."""

    def __init__(self, verifiers: list[Standing], drafters: list[Standing]) -> None:
        self.verifiers = verifiers
        self.drafters = drafters
        self.drafter_bandit = DrafterBandit()
        self.rng = random.Random(0)
        self.instruments = self
        self.num_moves = 0

    def usable(self, pool: list[Standing]) -> list[Standing]:
        return pool

    def count_move(self, *, service: str) -> None:
        self.num_moves += 1


def route(pools: Pools) -> Route:
    request = settle_token_ids([1, 2, 3], GenerationOptions(max_tokens=8), CoordinatorConfig(), TARGET)  # pyright: ignore[reportCallIssue]
    # Whether any drafter fits at all is the workers' to say, which they are not asked here.
    return Route(cast("Workers", pools), replace(request, speculate=False), TARGET)


def replicas(*standing: Standing) -> list[Replica]:
    return [cast("Replica", each) for each in standing]


def test_completions_of_a_request_share_the_verifier_that_has_the_prompt() -> None:
    busy, free = Standing("busy", num_sessions=2), Standing("free")
    way = route(Pools([busy, free], []))
    assert [way.verifier(3) for _ in range(3)] == [free, free, free]


def test_only_a_full_verifier_sends_the_next_completion_elsewhere() -> None:
    small, large = Standing("small", TARGET._replace(max_sessions=2)), Standing("large", num_sessions=3)
    way = route(Pools([small, large], []))
    assert [way.verifier(3) for _ in range(3)] == [small, small, large]


def test_a_verifier_to_avoid_is_avoided_and_the_move_is_counted() -> None:
    first, second = Standing("first"), Standing("second", num_sessions=1)
    pools = Pools([first, second], [])
    way = route(pools)
    assert way.verifier(3) is cast("object", first)
    assert pools.num_moves == 0
    assert way.verifier(3, replicas(first)) is cast("object", second)
    assert pools.num_moves == 1
    with pytest.raises(WorkerUnavailableError, match="no verify service is left"):
        way.verifier(3, replicas(first, second))


def test_each_placement_is_told_with_those_before_it() -> None:
    first, second, drafter = Standing("first"), Standing("second", num_sessions=1), Standing("drafter")
    way = route(Pools([first, second], [drafter]))
    told: list[tuple[str, str, Sequence[str]]] = []
    way.on_placed = lambda *placed: told.append(placed)
    way.verifier(3)
    way.verifier(3, replicas(first))
    _, trial = way.drafter(3, *replicas(second))
    trial.cancel()
    assert told == [("service", "first", []), ("service", "second", ["first"]), ("service", "drafter", [])]


@pytest.mark.parametrize(
    "other", [TARGET._replace(dtype="bfloat16"), TARGET._replace(vocab_size=99), TARGET._replace(max_context=10)]
)
def test_a_verifier_that_would_give_other_tokens_or_has_too_little_context_is_not_used(other: ModelInfo) -> None:
    with pytest.raises(WorkerUnavailableError):
        route(Pools([Standing("other", other)], [])).verifier(3)


def test_a_session_can_move_where_another_verifier_has_context_for_it() -> None:
    large, small = Standing("large"), Standing("small", TARGET._replace(max_context=10))
    pools = Pools([large, small], [])
    seat = cast("Standing", route(pools).verifier(3))
    assert seat is large
    assert not seat.can_move()
    pools.verifiers.append(Standing("another"))
    assert seat.can_move()


def test_a_session_can_move_where_another_drafter_would_take_it() -> None:
    first, short = Standing("first"), Standing("short", TARGET._replace(max_context=10))
    verifier, pools = Standing("verifier"), Pools([], [first, short])
    seat, trial = route(pools).drafter(3, *replicas(verifier))
    trial.cancel()
    assert seat is cast("object", first)
    assert not seat.can_move()
    pools.drafters.append(Standing("another"))
    assert seat.can_move()


def test_a_drafter_that_broke_many_streams_comes_after_one_that_broke_none() -> None:
    broken, sound, verifier = Standing("broken"), Standing("sound"), Standing("verifier")
    broken.breaker.num_failures = 3
    seat, trial = route(Pools([verifier], [broken, sound])).drafter(3, *replicas(verifier))
    assert seat is cast("object", sound)
    trial.cancel()


def test_a_drafter_that_keeps_failing_gets_no_session_for_a_while() -> None:
    broken, verifier = Standing("broken"), Standing("verifier")
    for _ in range(3):
        broken.breaker.fail(time.monotonic() + 3600.0)
    with pytest.raises(WorkerUnavailableError, match="broken: it failed 3 times in a row"):
        route(Pools([verifier], [broken])).drafter(3, *replicas(verifier))


def test_why_no_drafter_can_be_used_is_said_for_each() -> None:
    short = Standing("short", TARGET._replace(max_context=10))
    full = Standing("full", TARGET._replace(max_sessions=1), num_sessions=1)
    verifier = Standing("verifier")
    way = route(Pools([verifier], [short, full]))
    with pytest.raises(WorkerUnavailableError) as raised:
        way.drafter(3, *replicas(verifier))
    assert "short: its context is 10 tokens and the request's 11" in str(raised.value)
    assert "full: all of its 1 slots are taken" in str(raised.value)
