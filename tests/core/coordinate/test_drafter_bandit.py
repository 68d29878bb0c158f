"""What is learned of draft models: the best one gets most sessions, none is forgotten for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from outrider.core.coordinate.drafter_bandit import FULL_ROUNDS, WORTH_PRIOR, DrafterBandit

NUM_SESSIONS = 2000


def choose(drafter_bandit: DrafterBandit, models: Mapping[str, float], *, greedy: bool = True) -> str:
    return max(models, key=lambda model: drafter_bandit.worth(model, greedy=greedy))


def run(drafter_bandit: DrafterBandit, models: Mapping[str, float], num_sessions: int = NUM_SESSIONS) -> Counter[str]:
    """Sessions one after another, each with the model worth most; `models` has their true tokens per round."""
    chosen = Counter[str]()
    for _ in range(num_sessions):
        model = choose(drafter_bandit, models)
        chosen[model] += 1
        drafter_bandit.begin(model, greedy=True).end(round(FULL_ROUNDS * models[model]), FULL_ROUNDS)
    return chosen


def test_the_best_model_gets_most_sessions_and_the_others_are_tried_now_and_then() -> None:
    chosen = run(DrafterBandit(), {"small": 2.0, "large": 3.0, "ngram": 1.3})
    assert chosen["large"] > 0.9 * NUM_SESSIONS
    assert 2 <= chosen["ngram"] <= chosen["small"] < 0.08 * NUM_SESSIONS


def test_it_is_deterministic_given_its_history() -> None:
    models = {"a": 2.0, "b": 2.5, "c": 2.4}
    assert run(DrafterBandit(), models) == run(DrafterBandit(), models)


def test_what_changes_is_noticed() -> None:
    drafter_bandit = DrafterBandit()
    run(drafter_bandit, {"a": 3.0, "b": 2.0})
    assert run(drafter_bandit, {"a": 3.0, "b": 4.0})["b"] > 0.8 * NUM_SESSIONS


def test_models_of_equal_worth_share() -> None:
    chosen = run(DrafterBandit(), {"a": 2.5, "b": 2.5})
    assert min(chosen.values()) > 0.4 * NUM_SESSIONS


def test_a_burst_does_not_go_to_one_unknown_model() -> None:
    drafter_bandit = DrafterBandit()
    run(drafter_bandit, {"known": WORTH_PRIOR}, 10)
    chosen = Counter[str]()
    for _ in range(30):
        model = choose(drafter_bandit, {"known": 0.0, "new": 0.0})
        drafter_bandit.begin(model, greedy=True)
        chosen[model] += 1
    assert chosen["new"] > chosen["known"] > 5


def test_a_model_that_fails_is_worth_what_the_target_does_alone() -> None:
    drafter_bandit = DrafterBandit()
    for _ in range(200):
        drafter_bandit.begin("broken", greedy=True).fail()
    assert drafter_bandit.worth("broken", greedy=True) == pytest.approx(1.0, abs=0.25)


def test_a_session_that_did_not_take_place_teaches_nothing() -> None:
    drafter_bandit = DrafterBandit()
    before = drafter_bandit.worth("a", greedy=True)
    drafter_bandit.begin("a", greedy=True).cancel()
    drafter_bandit.begin("a", greedy=True).end(0, 0)
    assert drafter_bandit.worth("a", greedy=True) == before


def test_short_sessions_count_for_less() -> None:
    short, long = DrafterBandit(), DrafterBandit()
    short.begin("a", greedy=True).end(20, 4)
    long.begin("a", greedy=True).end(20 * FULL_ROUNDS // 4, FULL_ROUNDS)
    assert WORTH_PRIOR < short.worth("a", greedy=True) < long.worth("a", greedy=True)


def test_greedy_and_sampled_sessions_are_told_apart() -> None:
    drafter_bandit = DrafterBandit()
    before = drafter_bandit.worth("a", greedy=False)
    drafter_bandit.begin("a", greedy=True).end(400, 100)
    assert drafter_bandit.worth("a", greedy=False) == before
