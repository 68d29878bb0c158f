"""The speculation gate: shuts while the target alone serves the present load sooner, and finds that out by trying.

A verifier sees what a guess costs in its own step. It does not see what drafting costs the rest of the machine: the
drafter may hold the target's cores, each window is a message, and all of it is paid for by every session. So the gate
compares what clients see, the time from round to round per token, with speculation and without it, for each load apart.
The present way runs on and is measured; now and then the other way is tried, by all sessions together, since what one
session's drafts cost falls upon the others. It is tried the less often the clearer the last trial was lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

GAP_SECONDS_MAX: Final = 1.0
"""A round counts as at most this late: beyond it, a client that does not read is more likely than a step that long."""

TRIAL_REASON: Final = "the target alone is being tried, to see whether speculation pays at this load"
"""Why the gate is shut while it is not known which way is better."""

_UNIT_TOKENS = 1024
_UNIT_ROUNDS = 64
"""Before the first trial at a load pass so many tokens, or so many for each running completion: a second or so."""

_INTERVAL_GROWTH = 4
_INTERVAL_UNITS_MAX = 64
"""After each trial that changes nothing the next one is so many times later, up to so many units. A lost trial costs
some tens of rounds at the worse speed, so in the long run trials cost less than one part in a hundred."""

_SETTLING_ROUNDS: Final = {True: 16, False: 4}
"""Tokens for each running completion that are not counted after the gate opened, or shut: drafters read all lines
before they draft, and stop within a step."""

_TRIAL_TOKENS_MIN = 8
_TRIAL_TOKENS_MAX = 256
_TRIAL_ROUNDS_MAX = 32
"""A trial ends when its outcome is clear, or after so many tokens, or so many for each running completion."""

_CLEAR = 0.1
_SCATTER = 1.5
"""Logarithm of the ratio of both ways' costs from which a trial is clear: `_CLEAR + _SCATTER / sqrt(tokens)`. By chance
the cost of t tokens in rounds of one to three is off by about 1 / sqrt(t)."""

_GAIN_MIN = 1.02
"""The present way is left if it takes so many times as long as the other: less is within what such trials scatter."""

_MEMORY_ROUNDS = 128
"""Tokens for each running completion after which a measurement of the present way counts a factor e less: texts are
more and less predictable, and a trial is compared with what was just before."""

_LOAD_ROUNDS = 8
"""The same of the number of running completions, as far as it decides which load this is: once it falls. A burst is the
load that it is at once."""

_LEVEL_MARGIN = 0.75
"""A load level spans a factor 2; it is left when the load is beyond it by half of that."""


@dataclass(slots=True)
class _Cost:
    """Seconds per token, with a memory that fades."""

    tokens: float = 0.0
    seconds: float = 0.0

    def observe(self, num_tokens: int, seconds: float, memory: float) -> None:
        """`num_tokens` took `seconds`. What is `memory` tokens ago counts a factor e less."""
        keep = math.exp(-num_tokens / memory)
        self.tokens = self.tokens * keep + num_tokens
        self.seconds = self.seconds * keep + seconds

    @property
    def per_token(self) -> float:
        return self.seconds / self.tokens


@dataclass(slots=True)
class _Load:
    """What is known of one load: a level of running completions, greedy or sampled."""

    is_open: bool
    """The way that is better as far as is known."""
    is_tried: bool = False
    """Whether a trial has compared both ways."""
    num_trials_lost: int = 0
    """By the other way, one after another."""
    left: float = 0.0
    """Tokens until the next trial."""
    cost: _Cost = field(default_factory=_Cost)
    """Of the present way."""
    open_ms: float = 0.0
    shut_ms: float = 0.0
    """Milliseconds per token by the latest trial that compared the two."""


class SpeculationGate:
    """Decides for all completions of a coordinator whether they speculate. Deterministic given what it is told.

    Tell it of the completions that want to speculate and could, paused or not; ask `is_open` after each round.
    """

    def __init__(self, *, adaptive: bool = True) -> None:
        """Not `adaptive`: it stays open."""
        self.is_open = True
        """Whether completions speculate at present."""
        self._adaptive = adaptive
        self._loads: dict[tuple[int, bool], _Load] = {}
        """By level, a power of 2, and whether most are greedy."""
        self._present: _Load | None = None
        self._level = 0
        self._num_running = 0
        self._num_greedy = 0
        self._mean_running = 0.0
        self._settling = 0.0
        """Tokens that are not to be counted any more."""
        self._trial: _Cost | None = None
        """Of the other way, while it is tried."""

    @property
    def reason(self) -> str:
        """Why the gate is shut; empty while it is open."""
        if self.is_open:
            return ""
        if self._trial is not None or self._present is None:
            return TRIAL_REASON
        return (
            f"speculation does not pay at this load: a token takes {self._present.open_ms:.3g} ms with it "
            f"and {self._present.shut_ms:.3g} ms by the target alone"
        )

    def begin(self, *, greedy: bool) -> None:
        """A completion is asked for. It counts from then on, though its first token may be far: what drafters would do
        for it is done while all wait for their prompts."""
        self._num_running += 1
        self._num_greedy += greedy
        self._mean_running = max(self._mean_running, float(self._num_running))
        if self._adaptive:
            self._follow(0)

    def end(self, *, greedy: bool) -> None:
        """A completion that was asked for is over."""
        self._num_running -= 1
        self._num_greedy -= greedy

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A round of one of them brought `num_tokens`, `seconds` after its round before."""
        if not self._adaptive:
            return
        seconds = min(seconds, GAP_SECONDS_MAX)
        load = self._follow(num_tokens)
        if self._settling > 0.0:
            self._settling -= num_tokens
        elif self._trial is not None:
            self._trial.tokens += num_tokens
            self._trial.seconds += seconds
            self._judge(load, self._trial)
        else:
            load.cost.observe(num_tokens, seconds, _MEMORY_ROUNDS * self._num_running)
            load.left -= num_tokens
            if load.left <= 0.0:
                self._trial = _Cost()
                self._turn(not load.is_open)

    def _follow(self, num_tokens: int) -> _Load:
        """The load after so many more tokens, which has been entered."""
        load = self._load(num_tokens)
        if load is not self._present:
            self._enter(load)
        return load

    def _load(self, num_tokens: int) -> _Load:
        gain = 1.0 - math.exp(-num_tokens / (_LOAD_ROUNDS * self._num_running))
        self._mean_running += gain * (self._num_running - self._mean_running)
        exact = math.log2(max(self._mean_running, 1.0))
        if abs(exact - self._level) > _LEVEL_MARGIN:
            self._level = round(exact)
        key = self._level, 2 * self._num_greedy >= self._num_running
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load(True, left=self._unit)
        if load is not self._present and not load.is_tried:
            # The fuller a device is, the less a guess pays: that it does not at a larger load says nothing of this one.
            smaller = [
                each for each, known in self._loads.items() if known.is_tried and each[1] == key[1] and each < key
            ]
            if smaller:
                nearest = self._loads[max(smaller)]
                load.is_open, load.open_ms, load.shut_ms = nearest.is_open, nearest.open_ms, nearest.shut_ms
        return load

    @property
    def _unit(self) -> float:
        return max(_UNIT_TOKENS, _UNIT_ROUNDS * self._num_running)

    def _enter(self, load: _Load) -> None:
        """Another load: a trial of the one before ends without a result, and what is new may take time to settle."""
        self._present = load
        self._trial = None
        self._turn(load.is_open)

    def _turn(self, is_open: bool) -> None:
        self.is_open = is_open
        self._settling = _SETTLING_ROUNDS[is_open] * self._num_running

    def _judge(self, load: _Load, trial: _Cost) -> None:
        num_tokens = trial.tokens
        if num_tokens < _TRIAL_TOKENS_MIN or load.cost.seconds <= 0.0:
            return
        gain = load.cost.per_token / max(trial.per_token, 1e-9)
        is_clear = abs(math.log(gain)) > _CLEAR + _SCATTER / math.sqrt(num_tokens)
        if not is_clear and num_tokens < max(_TRIAL_TOKENS_MAX, _TRIAL_ROUNDS_MAX * self._num_running):
            return
        load.is_tried = True
        costs = load.cost.per_token * 1000.0, trial.per_token * 1000.0
        load.open_ms, load.shut_ms = costs if load.is_open else costs[::-1]
        self._trial = None
        if gain > _GAIN_MIN:
            load.is_open = self.is_open
            load.num_trials_lost = 1
            load.cost = trial
        else:
            load.num_trials_lost += 1
            self._turn(load.is_open)
        load.left = self._unit * min(_INTERVAL_GROWTH**load.num_trials_lost, _INTERVAL_UNITS_MAX)
