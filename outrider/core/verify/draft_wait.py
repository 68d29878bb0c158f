"""Wait for drafts, or verify what is there? Decided by the expected time to the end of the drafter's luck."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_SMOOTHING = 0.2
"""Weight of the newest observation of a duration: the last five or so decide."""

_COVERAGE_SMOOTHING = 0.05
"""Weight of the newest decided place: a share needs more observations than a duration, and a round decides several."""

_COVERAGE_PRIOR = 0.7
"""Share of places where the target's choice is among the guesses, before any was decided: between the demonstration
pair's 0.55 for one guess and 0.75 for three."""

_COVERAGE_MAX = 0.99
"""Bound on that share: no luck lasts for ever."""

_LEVELS_MAX = 16
"""Deepest that a wait may aim: at a coverage of 0.8 the seventeenth level stands with 0.03."""

_ROUNDS_MAX = 4
"""Rounds after the next one that are followed one by one; from then on a geometric sum is close enough."""

_GAIN_MIN = 0.15
"""Share of a step by which a wait must promise to shorten the run, or the round goes at once. A promise of less is not
kept: of many estimates the best is too good, and drafts come late where drafter and coordinator share a core. On the
wide pair waits of 0.05 and more cost 0 to 3 % against those of 0.15, and on the virtual clock those give away 3 %."""

_OVERDUE = 1.5
"""A draft that takes this many times its expected time is not waited for any longer: the estimate has proved wrong."""

_DURATION_EXCESS_MAX = 3.0
"""A duration counts as at most this many times the mean: one hiccup must not end all waiting."""


class ReadyDrafts(NamedTuple):
    """What is at hand when the verifier asks whether to wait."""

    no_drafts: bool
    """Whether nothing is at hand: the next draft is then the first one after a verdict."""
    leaf_probability: float
    """Chance that the target's path runs to a leaf at hand, where further drafts would take it on; 1 if bare."""
    step_now: float
    """Expected duration of a step that scores them."""
    step_later: float
    """The same for a step that scores what a wait would bring, and for the rounds that follow."""


class Wait(NamedTuple):
    """How long the next round should wait for drafts, in seconds."""

    expected: float
    """Until the next draft is expected; 0: go now."""
    longest: float
    """If none has come by then: go."""
    gain: float
    """By how much the run of luck is expected to be shorter than if the round went now."""


AT_ONCE = Wait(0.0, 0.0, 0.0)
"""Nothing is worth waiting for."""


class DraftWait:
    """One session's running estimates and the wait that follows from them. All times are in seconds.

    A *run* begins with a root below which nothing is drafted and ends when the target chooses a token that was not
    guessed. How many tokens it commits is up to the draft: with coverage r, the chance that the target's choice is
    among the guesses for its place, 1 / (1 - r) on average. So the best wait is the one after which the run takes the
    least time. A step that starts after a wait w takes t; the run goes on after it if all levels of drafts at hand and
    the next token were guessed, with chance S(w) = leaf_chance * r^(levels still to come until then + 1); and so on:

        T(w) = w + t + sum over later rounds i of S_i * t,

    each S_i counting the levels drafted by the time round i starts. Going at once is not lost even with nothing at
    hand: drafting goes on meanwhile, and is worth as much in the next round if the token decided now is covered.
    """

    __slots__ = ("_coverage", "_first_draft", "_level")

    def __init__(self, prior: DraftWait | None = None) -> None:
        """Starts from what `prior` has learned in other sessions, if anything."""
        self._coverage = prior._coverage if prior is not None else _COVERAGE_PRIOR
        self._level = prior._level if prior is not None else 0.0
        self._first_draft = prior._first_draft if prior is not None else 0.0

    def observe_places(self, worths: Iterable[float]) -> None:
        """Places with guesses were decided. A place is worth 1 if its token was among the guesses, scored in time or
        not, and else 0; less what it costs other sessions to have them scored."""
        for worth in worths:
            self._coverage += _COVERAGE_SMOOTHING * (worth - self._coverage)

    def observe_levels(self, num_levels: int, elapsed: float) -> None:
        """While the drafter worked without pause its drafts became `num_levels` deeper in `elapsed` seconds."""
        self._level = _smoothed(self._level, elapsed / num_levels)

    def observe_first_draft(self, elapsed: float) -> None:
        """After a verdict that left no drafts, the first usable one came `elapsed` seconds later."""
        self._first_draft = _smoothed(self._first_draft, elapsed)

    def observe_no_draft(self, elapsed: float, at_hand: bool) -> None:
        """A wait, with drafts at hand or not, ended after `elapsed` seconds without any: they are further off."""
        if at_hand:
            self._level = max(self._level, _smoothed(self._level, 2.0 * elapsed))
        else:
            self._first_draft = max(self._first_draft, _smoothed(self._first_draft, 2.0 * elapsed))

    def wait(self, ready_drafts: ReadyDrafts, num_room: int, elapsed: float) -> Wait:
        """How much longer to wait, `elapsed` seconds after the last verdict; the step has room for `num_room` nodes.

        Ask again when a draft arrives.
        """
        step, level = ready_drafts.step_later, self._level
        if ready_drafts.step_now <= 0.0 or level <= 0.0 or num_room <= 0:
            return AT_ONCE
        until_next = level
        if ready_drafts.no_drafts:
            until_next = max((self._first_draft or step) - elapsed, 0.0)
        going = self._run_time(ready_drafts, ready_drafts.step_now, 0.0, 0, until_next)
        if elapsed > going or until_next == 0.0:
            return AT_ONCE
        best_time = going
        for num_levels in range(1, min(num_room, _LEVELS_MAX) + 1):
            wait = until_next + (num_levels - 1) * level
            if wait >= best_time:
                break
            run_time = self._run_time(ready_drafts, step, wait, num_levels, until_next)
            best_time = min(best_time, run_time)
        if going - best_time <= _GAIN_MIN * step:
            return AT_ONCE
        return Wait(until_next, _OVERDUE * until_next, going - best_time)

    def _run_time(
        self, ready_drafts: ReadyDrafts, first_step: float, wait: float, num_levels: int, until_next: float
    ) -> float:
        """T(wait), when the step after it starts with `num_levels` more levels than are at hand."""
        step, level = ready_drafts.step_later, self._level
        coverage = min(max(self._coverage, 0.0), _COVERAGE_MAX)
        now = wait + first_step
        total = now
        depth = num_levels + 1.0
        for _ in range(_ROUNDS_MAX):
            probability = ready_drafts.leaf_probability * coverage**depth
            if probability < 0.01:
                return total
            total += probability * step
            num_arrived = (now - until_next) / level + 1.0 if now >= until_next else 0.0
            depth = max(depth, num_arrived) + 1.0
            now += step
        levels_per_step = max(step / level, 1.0)
        return total + ready_drafts.leaf_probability * coverage**depth / (1.0 - coverage**levels_per_step) * step


def _smoothed(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _SMOOTHING * (min(value, _DURATION_EXCESS_MAX * mean) - mean)
