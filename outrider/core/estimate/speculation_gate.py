"""The speculation gate: shuts while the present load is served sooner without drafts, and finds that out by trying.

A verifier sees what a guess costs in its own step. It does not see what drafting costs the rest of the machine: the
drafter may hold the target's cores, each window is a message, and all of it is paid for by every session. So the gate
compares what clients see, the time from round to round per token, with drafts and without, for each load apart. (A
verifier asks another one whether the guesses that it makes itself pay; see `OwnGuessing`.)
The present way runs on and is measured; now and then the other way is tried, by all sessions together, since what one
session's drafts cost falls upon the others. It is tried soon where nothing is known of a load, and the less often the
more trials have said the same. How a load begins that no trial has seen, its neighbours decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

GAP_SECONDS_MAX: Final = 1.0
"""A round counts as at most this late: beyond it, a client that does not read is more likely than a step that long."""

TRIAL_REASON: Final = "the target is being tried without drafts, to see whether they pay at this load"
"""Why the gate is shut while it is not known which way is better."""

_FIRST_TOKENS = 128
_FIRST_ROUNDS = 8
"""Where speculation is begun and may lose, the target alone is tried after so many tokens, or so many for each running
completion: what a token costs is known to a tenth by then."""

_UNIT_TOKENS = 1024
_UNIT_ROUNDS = 64
"""Elsewhere the first trial is after so many tokens, or so many for each running completion: a second or so."""

_INTERVAL_GROWTH = 4
_INTERVAL_UNITS_MAX = 64
"""The next trial is so many units after one that is won or clearly lost, and one after the first if that is neither;
after each further one that is lost it is so many times later, up to so many units. A lost trial costs some tens of
rounds at the worse speed, so in the long run trials cost less than one part in a hundred."""

_FALL = 0.1
"""By how much the logarithm of what speculation gains falls with each level of load, where nothing tells: about the
least that was measured."""

_SETTLING_ROUNDS: Final = {True: 16, False: 4}
"""Tokens for each running completion that are not counted after the gate opened, or shut: drafters read all lines
before they draft, and stop within a step."""

_WAITING_SHARE_MAX = 0.25
_WAITING_ROUNDS_MAX = 64
"""Nor are those that come while more than this share of the completions wait for their first token: a step is another
one then, and a burst begins in one way and goes on in the other. Where so many tokens for each running completion have
come so since another load began, more wait at all times, and they count."""

_TRIAL_TOKENS_MAX = 128
_TRIAL_ROUNDS_MAX = 32
"""A trial ends after so many tokens, or so many for each running completion, or when it is clear that it is lost."""

_STEP_VARIANCE = 0.1
"""The variance of the logarithm of what t tokens cost is `1 / t` with speculation, for a round brings one to three by
chance, and for each running completion `_STEP_VARIANCE / t` either way, for all share a step and the time it takes."""

_TRIAL_VARIANCE_MAX = 1 / 64
_CLEAR = 0.05
"""A trial is clearly lost from so small a variance on, if the logarithm of the ratio of both ways' costs is beyond
`_CLEAR` and a standard deviation. One that is about to be won goes on to its end: that costs nothing if it is right."""

GAIN_MIN = 1.02
"""How many times as many tokens a second speculation must bring: less is within what such trials scatter, and what it
costs that a drafter reads a prompt, no trial sees."""

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


class _Told(NamedTuple):
    """What a trial told: milliseconds per token with drafts, and without."""

    open_ms: float
    shut_ms: float

    @property
    def gain(self) -> float:
        """Logarithm of how many times the tokens per second are with speculation."""
        return math.log(self.shut_ms / self.open_ms)

    def __str__(self) -> str:
        return f"a token takes {self.open_ms:.3g} ms with drafts and {self.shut_ms:.3g} ms without"


@dataclass(slots=True)
class _Load:
    """What is known of one load: a level of running completions, greedy or sampled."""

    is_open: bool = True
    """The way that is better as far as is known."""
    left: float = 0.0
    """Tokens until the next trial."""
    cost: _Cost = field(default_factory=_Cost)
    """Of the present way."""
    trial: _Cost | None = None
    """Of the other way, while it is tried: also when the load is left meanwhile."""
    told: _Told | None = None
    """By the latest trial here."""
    neighbour: _Told | None = None
    """What was told of the next smaller load, when this one began."""
    num_confirmed: int = 0
    """How many trials have said the same."""


def _fall(smaller: tuple[int, _Told], larger: tuple[int, _Told]) -> float:
    """By how much the gain falls with each level between two."""
    return (smaller[1].gain - larger[1].gain) / (larger[0] - smaller[0])


class SpeculationGate:
    """Decides for all completions of a coordinator whether they speculate. Deterministic given what it is told.

    Tell it of the completions that want to speculate and could, paused or not; ask `is_open` after each round.
    """

    def __init__(self, *, adaptive: bool = True, gain_min: float = GAIN_MIN, begins_open: bool = True) -> None:
        """Not `adaptive`: it stays open.

        Speculation must make tokens per second `gain_min` times more. Where nothing is known it is begun by a lone
        completion, and by several if the gate `begins_open`.
        """
        self._log_gain_min = math.log(gain_min)
        self._begins_open = begins_open
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
        self._num_waiting = 0
        """Of those that run, how many have no token yet."""
        self._settling = 0.0
        """Tokens that are still to come before any counts."""
        self._crowding = 0.0
        """The same where too many wait."""

    @property
    def reason(self) -> str:
        """Why the gate is shut; empty while it is open."""
        if self.is_open:
            return ""
        load = self._present
        if load is not None and load.trial is None:
            if load.told is not None:
                return f"drafts do not pay at this load: {load.told}"
            if load.neighbour is not None:
                return f"drafts are not expected to pay at this load: at a smaller one {load.neighbour}"
        return TRIAL_REASON

    def begin(self, *, greedy: bool) -> None:
        """A completion is asked for. It counts from then on, though its first token may be far: what drafters would do
        for it is done while all wait for their prompts."""
        self._num_running += 1
        self._num_waiting += 1
        self._num_greedy += greedy
        self._mean_running = max(self._mean_running, float(self._num_running))
        if self._adaptive:
            self._follow(0)

    def start(self) -> None:
        """One of them has its first token."""
        self._num_waiting -= 1

    def end(self, *, greedy: bool, has_started: bool = True) -> None:
        """A completion that was asked for is over. It may not `have started`: it never had a token."""
        self._num_running -= 1
        self._num_waiting -= not has_started
        self._num_greedy -= greedy

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A round of one of them brought `num_tokens`, `seconds` after its round before."""
        if not self._adaptive:
            return
        seconds = min(seconds, GAP_SECONDS_MAX)
        load = self._follow(num_tokens)
        if self._settling > 0.0:
            self._settling -= num_tokens
        elif self._crowding > 0.0 and self._num_waiting > _WAITING_SHARE_MAX * self._num_running:
            self._crowding -= num_tokens
        elif load.trial is not None:
            load.trial.tokens += num_tokens
            load.trial.seconds += seconds
            self._judge(load, load.trial)
        else:
            load.cost.observe(num_tokens, seconds, _MEMORY_ROUNDS * self._num_running)
            load.left -= num_tokens
            if load.left <= 0.0:
                load.trial = _Cost()
                self._turn(not load.is_open)

    def _follow(self, num_tokens: int) -> _Load:
        """The load after so many more tokens, which has been entered."""
        gain = 1.0 - math.exp(-num_tokens / (_LOAD_ROUNDS * self._num_running))
        self._mean_running += gain * (self._num_running - self._mean_running)
        exact = math.log2(max(self._mean_running, 1.0))
        if abs(exact - self._level) > _LEVEL_MARGIN:
            self._level = round(exact)
        key = self._level, 2 * self._num_greedy >= self._num_running
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load()
        if load is not self._present:
            if load.told is None and load.trial is None:
                self._expect(load, *key)
            self._enter(load)
        return load

    def _enter(self, load: _Load) -> None:
        """Another load than before: what is new may take time to settle."""
        self._present = load
        self._crowding = _WAITING_ROUNDS_MAX * self._num_running
        self._turn(load.is_open if load.trial is None else not load.is_open)

    def _turn(self, is_open: bool) -> None:
        self.is_open = is_open
        self._settling = _SETTLING_ROUNDS[is_open] * self._num_running

    def _expect(self, load: _Load, level: int, is_greedy: bool) -> None:
        """Has a load that no trial has seen begin as the next smaller and larger ones that one has let expect.

        The fuller a device is, the less a guess pays: what gains at a larger load gains here, and that it does not gain
        there says nothing. Without a larger one the gain falls on, if less than between the two next smaller ones.
        """
        known = sorted(
            (at, each.told) for (at, greedy), each in self._loads.items() if each.told and greedy == is_greedy
        )
        smaller = [each for each in known if each[0] < level]
        larger = next((each for each in known if each[0] > level), None)
        expected, load.neighbour = (0.0 if self._begins_open or level == 0 else -math.inf), None
        if smaller:
            at, load.neighbour = smaller[-1]
            fall = _FALL
            if larger is not None:
                fall = _fall(smaller[-1], larger)
            elif len(smaller) > 1:
                fall = max(fall, (fall + _fall(*smaller[-2:])) / 2.0)
            expected = load.neighbour.gain - fall * (level - at)
        is_open = expected >= 0.0
        if load.is_open != is_open or not load.cost.tokens:
            is_sure = (smaller and not is_open) or (larger is not None and larger[1].gain > 0.0)
            load.is_open, load.cost = is_open, _Cost()
            load.left = self._unit if is_sure else max(_FIRST_TOKENS, _FIRST_ROUNDS * self._num_running)

    @property
    def _unit(self) -> float:
        return max(_UNIT_TOKENS, _UNIT_ROUNDS * self._num_running)

    def _judge(self, load: _Load, trial: _Cost) -> None:
        variance = self._variance(trial, self.is_open)
        if variance > _TRIAL_VARIANCE_MAX or load.cost.seconds <= 0.0:
            return
        costs = load.cost.per_token * 1000.0, max(trial.per_token, 1e-9) * 1000.0
        told = _Told(*(costs if load.is_open else reversed(costs)))
        is_won = (told.gain > self._log_gain_min) == self.is_open
        is_clear = abs(told.gain) > _CLEAR + math.sqrt(variance + self._variance(load.cost, load.is_open))
        is_over = trial.tokens >= max(_TRIAL_TOKENS_MAX, _TRIAL_ROUNDS_MAX * self._num_running)
        if not is_over and (is_won or not is_clear):
            return
        load.told, load.trial = told, None
        if is_won:
            load.is_open, load.cost, load.num_confirmed = self.is_open, trial, 0
        else:
            self._turn(load.is_open)
        units = _INTERVAL_GROWTH ** (load.num_confirmed + (is_won or is_clear))
        load.left = self._unit * min(units, _INTERVAL_UNITS_MAX)
        load.num_confirmed += 1

    def _variance(self, cost: _Cost, is_open: bool) -> float:
        """Of the logarithm of a way's cost."""
        return (is_open + _STEP_VARIANCE * self._num_running) / cost.tokens
