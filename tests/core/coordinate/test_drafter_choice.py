"""The choice of a drafter: who may have the session, who gets it, and what those are told that may not."""

from __future__ import annotations

from outrider.core.coordinate.circuit_breaker import FAILURES_MAX, PAUSE_SECONDS, CircuitBreaker
from outrider.core.coordinate.drafter_bandit import FULL_ROUNDS, DrafterBandit
from outrider.core.coordinate.drafter_choice import DrafterChoice, DrafterDemand, DrafterStanding, choose
from outrider.core.coordinate.placement import ReplicaState, StepTime
from outrider.core.protocol.messages import WorkerLoad

DEMAND = DrafterDemand(num_tokens=10, max_length=100, greedy=True, verify_step_ms=20.0)


def standing(name: str, *, sessions: int = 0, max_context: int = 100, model: str = "draft") -> DrafterStanding:
    state = ReplicaState(StepTime(), WorkerLoad("", sessions, 0, 0, 10_000, 10_000, 1.0), 4)
    return DrafterStanding(name, state, CircuitBreaker(), model, max_context)


def failed(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES_MAX):
        breaker.fail(0.0)


def chosen(standings: list[DrafterStanding], bandit: DrafterBandit | None = None, now: float = 0.0) -> DrafterChoice:
    choice = choose(standings, bandit or DrafterBandit(), DEMAND, now)
    assert isinstance(choice, DrafterChoice), choice
    return choice


def test_each_that_may_not_have_the_session_is_told_why() -> None:
    broken, short, full = standing("broken"), standing("short", max_context=99), standing("full", sessions=4)
    failed(broken.breaker)
    refusals = choose([broken, short, full], DrafterBandit(), DEMAND, 0.0)
    assert not isinstance(refusals, DrafterChoice)
    assert [str(refusal) for refusal in refusals] == [
        f"broken: it failed {FAILURES_MAX} times in a row, and is tried again in a while",
        "short: its context is 99 tokens and the request's 100",
        "full: all of its 4 slots are taken",
    ]
    assert not choose([], DrafterBandit(), DEMAND, 0.0)


def test_the_index_is_that_of_the_offer_whoever_is_left_out() -> None:
    assert chosen([standing("full", sessions=4), standing("busy", sessions=1), standing("idle")]).place == 2


def test_the_model_whose_drafts_were_worth_more_is_chosen_and_its_trial_begins() -> None:
    bandit = DrafterBandit()
    offered = [standing("one", model="poor"), standing("another", model="good")]
    for model, num_tokens in (("poor", FULL_ROUNDS), ("good", 6 * FULL_ROUNDS)):
        for _ in range(20):
            bandit.begin(model, greedy=True).end(num_tokens, FULL_ROUNDS)
    choice = chosen(offered, bandit)
    assert choice.place == 1
    with_one_running = bandit.worth("good", greedy=True)
    choice.trial.cancel()
    assert bandit.worth("good", greedy=True) > with_one_running


def test_a_breaker_that_is_half_open_gets_one_session() -> None:
    once_broken = standing("once broken")
    failed(once_broken.breaker)
    assert chosen([once_broken], now=PAUSE_SECONDS).place == 0
    refusals = choose([once_broken], DrafterBandit(), DEMAND, PAUSE_SECONDS)
    assert [str(refusal) for refusal in refusals] == [
        "once broken: it failed before, and is being tried with one session"
    ]
