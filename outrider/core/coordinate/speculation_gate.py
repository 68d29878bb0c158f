"""The speculation gate: shuts while the target alone serves the present load sooner, and finds that out by trying.

A verifier sees what a guess costs in its own step. It does not see what drafting costs the rest of the machine: the
drafter may hold the target's cores, each window is a message, and all of it is paid for by every session. So the gate
compares what the whole pool brings, tokens per second for so many completions, with speculation and without it, for
each load apart. The present way runs on and is measured; now and then the other way is tried, by all sessions together,
since what one session's drafts cost falls upon the others. It is tried the less often the more a trial costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from outrider.core.coordinate.load_level import Level, LoadLevel
from outrider.core.coordinate.pool_cost import PoolCost, Waiting

TRIAL_REASON: Final = "the target alone is being tried, to see whether speculation pays at this load"
"""Why the gate is shut while it is not known which way is better."""

_FIRST_TOKENS = 256
_FIRST_ROUNDS: Final = {True: 16, False: 64}
"""Before the first trial at a load that begins open, or shut, pass so many tokens, or so many for each running
completion: the first time open may be what no load should be, slower than the target alone; shut never is."""

_ARRIVAL_ROUNDS = 64
"""Another load, or one that comes back, has settled when as many have come to their first token as run, or after so
many tokens for each: until then prompts that came together are read together."""

_SETTLING_ROUNDS: Final = {True: 16, False: 4}
"""Tokens for each running completion that are not counted after the gate opened, or shut: drafters read all lines
before they draft, and stop within a step."""

_TRIAL_TOKENS_MIN = 8
_TRIAL_TOKENS_MAX = 256
_TRIAL_ROUNDS_MAX = 32
"""A trial ends when its outcome is clear, or after so many tokens, or so many for each running completion."""

_CLEAR = 0.1
_SCATTER = 1.5
_COMMON_SCATTER = 0.3
"""Logarithm of the ratio of both ways' costs from which a trial is clear: `_CLEAR + _SCATTER * scatter`. By chance the
cost of t tokens in rounds of one to three is off by about 1 / sqrt(t). That of steps, which all completions share, is
off as if each round of all of them were `1 / _COMMON_SCATTER` tokens: many tokens of one step tell little. Prompts that
come by chance add to it (`PoolCost.variance`)."""

_GAIN_MIN = math.log(1.02)
"""The present way is left if the other one brings so much more, and to speculate again only if that is more than
chance explains: what is not known to gain may lose."""

_KEPT = 0.5
"""Weight of what was known before by each new trial: machines and texts change."""

_TRIAL_SHARE_FIRST = 0.01
_TRIAL_SHARE_LAST = 0.0025
"""Share of the time that trials may cost after the first that changed nothing, and half of it after each further one,
down to the last share."""

_INTERVAL_MIN = 8.0
"""By the tokens of the trial: the next one is not before, however little it costs. Where the gate is open and what is
known might be chance, the first ones are after 2 and 4 times as many."""
_INTERVAL_TOKENS_MAX = 65_536
_INTERVAL_ROUNDS_MAX = 4096
"""The next one is not later than so many tokens, or so many for each running completion: minutes."""

_MEMORY_ROUNDS = 128
"""Tokens for each running completion after which a measurement of the present way counts a factor e less: texts are
more and less predictable, and a trial is compared with what was just before."""


@dataclass(slots=True)
class _Load:
    """What is known of one load."""

    is_open: bool = True
    """The way that is better as far as is known."""
    left: float = 0.0
    """Tokens until the next trial."""
    gain: float = 0.0
    """Logarithm of how many times the tokens per second are with speculation."""
    weight: float = 0.0
    """Of what trials have told of it; 0: none has."""
    num_trials_lost: int = 0
    """By the other way, one after another."""
    cost: PoolCost = field(default_factory=PoolCost)
    """Of the present way."""
    open_ms: float = 0.0
    shut_ms: float = 0.0
    """Milliseconds per token by the latest trial."""

    def learn(self, gain: float, weight: float) -> None:
        """A trial has measured it."""
        kept = _KEPT * self.weight
        self.gain = (kept * self.gain + weight * gain) / (kept + weight)
        self.weight = kept + weight


class SpeculationGate:
    """Decides for all completions of a coordinator whether they speculate. Deterministic given what it is told.

    Tell it of the completions that want to speculate, paused or not; ask `is_open` after each round. Times are in
    seconds, by any clock that only rises.
    """

    def __init__(self, *, adaptive: bool = True) -> None:
        """Not `adaptive`: it stays open."""
        self.is_open = True
        """Whether completions speculate at present."""
        self._adaptive = adaptive
        self._level = LoadLevel()
        self._waiting = Waiting()
        self._loads: dict[Level, _Load] = {}
        self._present: _Load | None = None
        self._settling = 0.0
        """Tokens that are not to be counted any more."""
        self._num_arriving = 0.0
        """First tokens after which they are counted all the same."""
        self._has_drained = False
        """Whether most completions ended, and no others have come instead so far."""
        self._trial: PoolCost | None = None
        """Of the other way, while it is tried."""

    @property
    def reason(self) -> str:
        """Why the gate is shut; empty while it is open."""
        if self.is_open:
            return ""
        if self._trial is not None or self._present is None or not self._present.shut_ms:
            return TRIAL_REASON
        return (
            f"speculation does not pay at this load: a token takes {self._present.open_ms:.3g} ms with it "
            f"and {self._present.shut_ms:.3g} ms by the target alone"
        )

    def begin(self, now: float, *, greedy: bool) -> None:
        """A completion has a place at the verifier, and waits for its first token."""
        self._waiting.advance(self._level.num_running, now)
        self._level.begin(greedy=greedy)
        self._follow()

    def end(self, now: float, *, greedy: bool) -> None:
        """A completion that began is over."""
        self._waiting.advance(self._level.num_running, now)
        self._level.end(greedy=greedy)
        self._has_drained |= self._level.has_drained

    def observe(
        self, num_tokens: int, now: float, *, first_wait: float | None = None, could_speculate: bool = True
    ) -> None:
        """A round of one of them brought `num_tokens`; if they were its first, it waited `first_wait` for them.

        Unless one or other `could_speculate`, nothing is tried: there is no drafter for any.
        """
        self._waiting.advance(self._level.num_running, now)
        self._level.observe(num_tokens)
        load = self._follow()
        if load is None:
            return
        seconds = self._waiting.take()
        is_settling = self._settling > 0.0 and self._num_arriving > 0
        self._num_arriving -= first_wait is not None
        if is_settling:
            self._settling -= num_tokens
        elif self._trial is not None:
            self._trial.observe(num_tokens, seconds, first_wait=first_wait)
            self._judge(load, self._trial)
        else:
            memory = _MEMORY_ROUNDS * self._num_running
            load.cost.observe(num_tokens, seconds, first_wait=first_wait, memory=memory)
            load.left -= num_tokens * could_speculate
            if load.left <= 0.0:
                self._trial = PoolCost()
                self._turn(not load.is_open)

    @property
    def _num_running(self) -> int:
        return max(self._level.num_running, 1)

    def _follow(self) -> _Load | None:
        """What is known of the present load. When it is another one than before, a trial of that ends without a result,
        and what is new may take time to settle."""
        if not self._adaptive:
            return None
        level = self._level.present
        load = self._loads.get(level) or _Load()
        if load is not self._present:
            is_open = load.is_open if load.weight else self._guess(level) > 0.0
            if level not in self._loads or is_open is not load.is_open:
                load.is_open = is_open
                load.left = max(_FIRST_TOKENS, _FIRST_ROUNDS[is_open] * self._num_running)
            self._loads[level] = load
            self._present, self._trial, self.is_open = load, None, load.is_open
            self._arrive()
        elif self._has_drained and not self._level.has_drained:
            self._arrive()
        return load

    def _arrive(self) -> None:
        self._has_drained = False
        self._num_arriving = self._num_running
        self._settling = _ARRIVAL_ROUNDS * self._num_running

    def _guess(self, level: Level) -> float:
        """The gain at a load that no trial has seen: on the line through the two nearest of the same kind that have.

        A heavier load than any gains no more than the heaviest: others pay for what one session's drafts cost. What is
        known of four times the load, and of nothing lighter, says nothing.
        """
        known = sorted(
            (abs(each.log2 - level.log2), each.log2, load.gain)
            for each, load in self._loads.items()
            if each.greedy == level.greedy and load.weight
        )[:2]
        if not known or min(log2 for _, log2, _ in known) > level.log2 + 1:
            return 1.0
        (_, log2, gain), *others = known
        if not others:
            return gain
        [(_, other_log2, other_gain)] = others
        line = gain + (other_gain - gain) / (other_log2 - log2) * (level.log2 - log2)
        return min(line, gain) if level.log2 > max(log2, other_log2) else line

    def _turn(self, is_open: bool) -> None:
        self.is_open = is_open
        self._settling = _SETTLING_ROUNDS[is_open] * self._num_running
        self._num_arriving = math.inf

    def _judge(self, load: _Load, trial: PoolCost) -> None:
        num_running, num_tokens = self._num_running, trial.tokens
        if num_tokens < _TRIAL_TOKENS_MIN or trial.seconds <= 0.0 or load.cost.seconds <= 0.0:
            return
        costs = load.cost.per_token, trial.per_token
        better = math.log(costs[0] / costs[1])
        scatter = math.sqrt((1.0 + _COMMON_SCATTER * num_running + load.cost.variance) / num_tokens)
        is_clear = abs(better) > _CLEAR + _SCATTER * scatter
        if not is_clear and num_tokens < max(_TRIAL_TOKENS_MAX, _TRIAL_ROUNDS_MAX * num_running):
            return
        load.open_ms, load.shut_ms = (1000.0 * each for each in (costs if load.is_open else costs[::-1]))
        load.learn(better if self.is_open else -better, scatter**-2)
        self._trial = None
        gain = load.gain if self.is_open else -load.gain  # of the other way
        if gain > (max(_GAIN_MIN, load.weight**-0.5) if self.is_open else _GAIN_MIN):
            load.is_open, load.cost, load.num_trials_lost = self.is_open, trial, 0
        else:
            self._turn(load.is_open)
        load.num_trials_lost += 1
        self._schedule(load, num_tokens + (_SETTLING_ROUNDS[True] + _SETTLING_ROUNDS[False]) * num_running)

    def _schedule(self, load: _Load, trial_tokens: float) -> None:
        """The next trial is such that one like the last, lost as clearly as is to be expected, costs its share."""
        share = max(_TRIAL_SHARE_FIRST / 2 ** (load.num_trials_lost - 1), _TRIAL_SHARE_LAST)
        interval = max(math.expm1(abs(load.gain)) / share, _INTERVAL_MIN)
        if load.is_open and load.gain < 2.0 * load.weight**-0.5:
            interval = min(2.0**load.num_trials_lost, _INTERVAL_MIN)
        longest = max(_INTERVAL_TOKENS_MAX, _INTERVAL_ROUNDS_MAX * self._num_running)
        load.left = min(trial_tokens * interval, longest)
