"""What each draft model's guesses have been worth so far, and how far to trust that: a bandit over models."""

from __future__ import annotations

import math
from collections.abc import Hashable

MEMORY_SESSIONS = 200
"""Sessions after which an observation counts a factor e less: drafts are worth more on some texts than on others, and
what texts are asked for changes. A model half as good as the best one then gets a few sessions out of a hundred."""

FULL_ROUNDS = 32
"""Rounds of a session that make a whole observation; a shorter session counts for less."""

WORTH_PRIOR = 2.0
"""Tokens per round that a model is taken for before its first session, with the weight of one session."""

EXPLORATION = 1.0
"""Tokens per round by which chance may move the mean of one session."""

_DECAY = math.exp(-1.0 / MEMORY_SESSIONS)

_FORGOTTEN = 0.01
"""Weight below which a model's past is dropped."""


class _Arm:
    """What one model has brought: a weighted sum of tokens per round."""

    __slots__ = ("num_running", "sum", "weight")

    def __init__(self) -> None:
        self.weight = 0.0
        self.sum = 0.0
        self.num_running = 0


class Trial:
    """One session with a model. Exactly one of its methods must be called, once."""

    def __init__(self, drafter_bandit: DrafterBandit, arm: _Arm, *, greedy: bool) -> None:
        self._drafter_bandit = drafter_bandit
        self._arm = arm
        self._greedy = greedy
        arm.num_running += 1

    def end(self, num_tokens: int, num_rounds: int) -> None:
        """It ended after `num_rounds` that committed `num_tokens`."""
        if num_rounds > 0:
            weight = min(num_rounds / FULL_ROUNDS, 1.0)
            self._drafter_bandit.observe(self._arm, num_tokens / num_rounds, weight, greedy=self._greedy)
        self._arm.num_running -= 1

    def fail(self) -> None:
        """The drafter failed, which counts as if the target had run alone."""
        self._drafter_bandit.observe(self._arm, 1.0, 1.0, greedy=self._greedy)
        self._arm.num_running -= 1

    def cancel(self) -> None:
        """It did not take place."""
        self._arm.num_running -= 1


class DrafterBandit:
    """Tokens per round by draft model, greedy and sampled sessions apart. Deterministic given its history.

    The choice by `worth` is UCB1 (Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem",
    2002) with the discount of Garivier and Moulines (arXiv 0805.3415) for what changes over time, and with sessions
    under way counted as trials, so that a burst does not go to one unknown model.
    """

    def __init__(self) -> None:
        self._greedy: dict[Hashable, _Arm] = {}
        self._sampled: dict[Hashable, _Arm] = {}

    def worth(self, model: Hashable, *, greedy: bool) -> float:
        """Tokens per round that a session may hope for: the mean so far, and more the less is known."""
        arms = self._arms(greedy)
        arm = arms.get(model) or _Arm()
        num_trials = sum(each.weight + each.num_running for each in arms.values())
        mean = (WORTH_PRIOR + arm.sum) / (1.0 + arm.weight)
        return mean + EXPLORATION * math.sqrt(math.log1p(num_trials) / (1.0 + arm.weight + arm.num_running))

    def begin(self, model: Hashable, *, greedy: bool) -> Trial:
        """A session with the model begins."""
        arms = self._arms(greedy)
        for forgotten in [key for key, arm in arms.items() if not arm.num_running and arm.weight < _FORGOTTEN]:
            del arms[forgotten]
        return Trial(self, arms.setdefault(model, _Arm()), greedy=greedy)

    def observe(self, arm: _Arm, tokens_per_round: float, weight: float, *, greedy: bool) -> None:
        """For trials: a session with the model of `arm` had so many tokens per round; all that was before fades."""
        for each in self._arms(greedy).values():
            each.weight *= _DECAY
            each.sum *= _DECAY
        arm.weight += weight
        arm.sum += weight * tokens_per_round

    def _arms(self, greedy: bool) -> dict[Hashable, _Arm]:
        return self._greedy if greedy else self._sampled
