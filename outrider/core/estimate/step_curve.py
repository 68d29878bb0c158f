"""The step curve: seconds of one forward pass as a function of its number of tokens, learned online.

Where the cells that a step's sessions hold in the KV cache were seen to cost time, `at` has them in: t(n) + k(n) c.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from outrider.core.estimate.context_cost import ContextCost, ContextTime

SIZES = (*range(1, 17), *(size << octave for octave in range(1, 7) for size in range(9, 17)))
"""Sizes that are learned apart; a step counts for the next larger one. One by one up to 16, then eight to the octave up
to 1024, twice the largest step of line tokens: engines pad their batches, so the curve may rise in stairs anywhere."""

_GAIN = 1 / 16
"""Weight of the newest step once a size has been seen often: the last sixteen or so decide, which at 2.5 ms a step is
40 ms of a machine's mood, and averages a step's usual scatter of a tenth down to 2 %."""

_EXCESS_MAX = 0.5
"""A step counts as at most this much slower than expected: a hiccup of ten times the step then moves the estimate by
3 %, and a machine that has really become twice as slow is believed after some twenty steps."""

_UNTRIED_STEPS = 64
"""After so many steps without one of its own a size counts as untried of late: what is remembered of it comes down, and
its next steps count as if it had been seen but once, so that two or three tell what it takes and not some thirty. One
that is slower than what is remembered is no more than a doubt: it may be a hiccup. The next such step, of that size or
of another one that has come back, is believed as far as both agree: one hiccup keeps no size from being tried, and a
burst of large steps of all sizes is known after two of them."""

_EXPLAINED_MAX = 0.9
"""Largest share of a step that cells may explain: what is left must be above 0."""

_RELAXED_STEPS = 16
"""After so many steps each, what is remembered of the sizes that are untried of late moves towards what the newest step
tells of them."""

_FALL = 1 / 8
"""How far a size above the newest step's comes down then, as a share of what it lies above the line through the sizes
below: an estimate that a hiccup spoilt is tried again after some hundred steps, and one that was not stays. Towards the
smaller step's own time all sizes seemed to cost the same in the end, and of 64 clients steps of 350 tokens were tried
again and again among those of 40. With a quarter of this of all sizes, tried or not, a hiccup in the sixth of twelve
answers cost the wide pair 10 to 30 % of the time of the later ones."""

_RISE = 1 / 2
"""How far a size below it goes up then, as a share of what it lies below its part of the newest step's time: a token is
not cheaper in a smaller step. Else sizes that were timed on an idle machine, and never occur at work, seem to cost half
of what they do, and so little of the prompts is read beside them that they never occur."""


class StepCurve:
    """t(n), seconds per step of n tokens: positive, never falling with n, linear between the sizes that were observed.

    Beyond them it goes on with the slope of the last octave; flat if there is but one. So larger steps are tried where
    they seem to pay, and one step tells. 0 everywhere before the first observation.
    """

    __slots__ = ("_context", "_counts", "_doubt", "_is_doubted", "_last_steps", "_num_steps", "_sizes", "_values")

    def __init__(self) -> None:
        self._context = ContextCost()
        self._sizes: list[int] = []
        """Those of SIZES that were observed, rising; the other lists go along."""
        self._values: list[float] = []
        self._counts: list[int] = []
        self._last_steps: list[int] = []
        """Number of the last step of each size."""
        self._is_doubted: list[bool] = []
        """Whether each size's last step was untried and slower than expected."""
        self._doubt = 0.0
        """How many times as long as expected the last such step took; 0 if one since was as fast as expected."""
        self._num_steps = 0

    def restart(self, observations: Iterable[tuple[int, float]], in_context: Iterable[ContextTime] = ()) -> None:
        """Forgets everything but these: numbers of tokens and seconds, of steps over hardly any cells; and steps over
        few and over many cells."""
        self._context = ContextCost(in_context)
        self._sizes.clear()
        self._values.clear()
        self._counts.clear()
        self._last_steps.clear()
        self._is_doubted.clear()
        self._doubt = 0.0
        for num_tokens, seconds in observations:
            self.observe(num_tokens, seconds)

    def at(self, num_cells: int) -> StepCurve:
        """The curve of steps whose sessions' lines take so many cells. It may learn of one such step, and be asked
        until the next is observed."""
        return InContext(self, self._context, num_cells) if self._context.sizes else self

    def over(self, nums_cells: Iterable[int]) -> StepCurve:
        """The same for lines that take so many cells each, which are not counted where cells cost nothing."""
        return self.at(sum(nums_cells)) if self._context.sizes else self

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step over `num_tokens` (at least 1) took `seconds`."""
        size = SIZES[min(bisect_left(SIZES, num_tokens), len(SIZES) - 1)]
        index = bisect_left(self._sizes, size)
        values = self._values
        if index == len(values) or self._sizes[index] != size:
            self._sizes.insert(index, size)
            # A larger size that is known takes as long at least: what exceeds it was a hiccup.
            values.insert(index, min([seconds, *values[index : index + 1]]))
            self._counts.insert(index, 1)
            self._last_steps.insert(index, 0)
            self._is_doubted.insert(index, False)
        else:
            self._learn(index, seconds)
        self._num_steps += 1
        self._last_steps[index] = self._num_steps
        smaller, larger = index - 1, index + 1
        while smaller >= 0 and values[smaller] > values[index]:
            values[smaller] = values[index]
            smaller -= 1
        while larger < len(values) and values[larger] < values[index]:
            values[larger] = values[index]
            larger += 1
        if self._num_steps % _RELAXED_STEPS == 0:
            self._relax(index)

    def _relax(self, index: int) -> None:
        """A step of the size at `index` was the newest: what does it tell of sizes that are untried of late?"""
        sizes, values = self._sizes, self._values
        size, newest = sizes[index], values[index]
        slope = min(self._slope(index), newest / size)  # what is known of half the size may be out of date
        for other in range(index - 1, -1, -1):
            if self._is_untried(other):
                part = newest * sizes[other] / size
                values[other] = min(values[other] + _RISE * max(part - values[other], 0.0), values[other + 1])
        for other in range(index + 1, len(values)):
            if self._is_untried(other):
                line = newest + slope * (sizes[other] - size)
                values[other] = max(values[other] - _FALL * max(values[other] - line, 0.0), values[other - 1])

    def _is_untried(self, index: int) -> bool:
        return self._num_steps - self._last_steps[index] > _UNTRIED_STEPS

    def _slope(self, index: int) -> float:
        """Seconds a token from half of this size to it; 0 of one token."""
        size, half = self._sizes[index], self._sizes[index] // 2
        return (self._values[index] - self.seconds(half)) / (size - half) if half else 0.0

    def _learn(self, index: int, seconds: float) -> None:
        """A step of a size that is known took so long."""
        values, counts = self._values, self._counts
        is_untried = self._is_untried(index)
        counts[index] = 2 if is_untried else counts[index] + 1
        excess = seconds / values[index]
        if is_untried or self._is_doubted[index]:
            agreed, self._doubt = min(excess, self._doubt), excess if excess > 1.0 else 0.0
            self._is_doubted[index] = is_untried and excess > 1.0 >= agreed
            if agreed > 1.0:
                values[index] *= agreed
                return
            if self._is_doubted[index]:
                return
        gain = max(_GAIN, 1.0 / counts[index])
        if seconds * (1.0 + _EXCESS_MAX) < values[index]:
            gain = 0.5  # chance makes steps slow, never fast: the estimate was spoilt
        values[index] += gain * min(seconds - values[index], _EXCESS_MAX * values[index])

    def seconds(self, num_tokens: int) -> float:
        """The expected duration of a step over `num_tokens`; 0 if no step was ever observed."""
        sizes, values = self._sizes, self._values
        index = bisect_left(sizes, num_tokens)
        if index == len(sizes):
            return self._beyond(num_tokens) if sizes else 0.0
        if index == 0 or sizes[index] == num_tokens:
            return values[index]
        left, right = sizes[index - 1], sizes[index]
        return values[index - 1] + (values[index] - values[index - 1]) * (num_tokens - left) / (right - left)

    def bends(self, first: int, last: int) -> Sequence[int]:
        """The numbers of tokens above `first` and below `last` between which the curve is a line."""
        return self._sizes[bisect_right(self._sizes, first) : bisect_left(self._sizes, last)]

    def largest(self, seconds: float) -> int | None:
        """Most tokens of a step that takes no longer than `seconds`, at least 1; None if no step was ever observed.

        Twice the largest observed size at most, so that what is tried without knowing takes no longer than two steps of
        that size.
        """
        if not self._sizes:
            return None
        low, high = 1, 2 * self._sizes[-1]
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds(middle) <= seconds else (low, middle - 1)
        return low

    def _beyond(self, num_tokens: int) -> float:
        last = len(self._sizes) - 1
        return self._values[last] + self._slope(last) * (num_tokens - self._sizes[last])


class InContext(StepCurve):
    """t(n) + k(n) c for some c, the curve and its context as they are at present."""

    __slots__ = ("_curve", "_num_cells")

    def __init__(self, curve: StepCurve, context: ContextCost, num_cells: int) -> None:
        super().__init__()
        self._curve = curve
        self._context = context
        self._num_cells = num_cells
        self._sizes = curve._sizes

    def at(self, num_cells: int) -> StepCurve:
        """The same for other cells."""
        return self._curve.at(num_cells)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """See `StepCurve.observe`: the curve learns of what cells do not explain."""
        step = ContextTime(num_tokens, self._num_cells, seconds)
        self._context.observe(step, self._curve.seconds(num_tokens))
        explained = self._context.seconds(num_tokens) * self._num_cells
        self._curve.observe(num_tokens, max(seconds - explained, (1.0 - _EXPLAINED_MAX) * seconds))

    def seconds(self, num_tokens: int) -> float:
        """See `StepCurve.seconds`."""
        return self._curve.seconds(num_tokens) + self._context.seconds(num_tokens) * self._num_cells

    def bends(self, first: int, last: int) -> Sequence[int]:
        """See `StepCurve.bends`."""
        more = (size for size in self._context.sizes if first < size < last)
        return sorted({*self._curve.bends(first, last), *more})
