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
that is slower than what is remembered is no more than a doubt: it may be a hiccup. Two in a row are believed, as far as
they agree, so that one hiccup keeps no size from being tried."""

_EXPLAINED_MAX = 0.9
"""Largest share of a step that cells may explain: what is left must be above 0."""

_RELAXATION = 1 / 128
"""With each smaller step a size untried of late is remembered as this much cheaper (as a share of the difference): an
estimate that a hiccup spoilt is tried again after some hundred steps. With 1 / 512 of all sizes, tried or not, a hiccup
in the sixth of twelve answers cost the wide pair 10 to 30 % of the time of the later ones."""


class StepCurve:
    """t(n), seconds per step of n tokens: positive, never falling with n, linear between the sizes that were observed.

    Beyond them it goes on with the slope of the last octave; flat if there is but one. So larger steps are tried where
    they seem to pay, and one step tells. 0 everywhere before the first observation.
    """

    __slots__ = ("_context", "_counts", "_doubted", "_last_steps", "_num_steps", "_sizes", "_values")

    def __init__(self) -> None:
        self._context = ContextCost()
        self._sizes: list[int] = []
        """Those of SIZES that were observed, rising; the other lists go along."""
        self._values: list[float] = []
        self._counts: list[int] = []
        self._last_steps: list[int] = []
        """Number of the last step of each size."""
        self._doubted: list[float] = []
        """Seconds of each size's last step, if it was untried and slower than expected; else 0."""
        self._num_steps = 0

    def restart(self, observations: Iterable[tuple[int, float]], in_context: Iterable[ContextTime] = ()) -> None:
        """Forgets everything but these: numbers of tokens and seconds, of steps over hardly any cells; and steps over
        few and over many cells."""
        self._context = ContextCost(in_context)
        self._sizes.clear()
        self._values.clear()
        self._counts.clear()
        self._last_steps.clear()
        self._doubted.clear()
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
            self._doubted.insert(index, 0.0)
        else:
            self._learn(index, seconds)
        self._num_steps += 1
        self._last_steps[index] = self._num_steps
        newest = values[index]
        for smaller in range(index):
            if values[smaller] > newest:
                values[smaller] = newest
        for larger in range(index + 1, len(values)):
            if values[larger] < newest:
                values[larger] = newest
            elif self._num_steps - self._last_steps[larger] > _UNTRIED_STEPS:
                values[larger] -= _RELAXATION * (values[larger] - newest)

    def _learn(self, index: int, seconds: float) -> None:
        """A step of a size that is known took so long."""
        values, counts = self._values, self._counts
        is_untried = self._num_steps - self._last_steps[index] > _UNTRIED_STEPS
        agreed, self._doubted[index] = min(seconds, self._doubted[index]), 0.0
        counts[index] = 2 if is_untried else counts[index] + 1
        if agreed > values[index]:
            values[index] = agreed
            return
        if is_untried and seconds > values[index]:
            self._doubted[index] = seconds
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
        largest, value = self._sizes[-1], self._values[-1]
        if len(self._sizes) == 1:
            return value
        slope = (value - self.seconds(largest // 2)) / (largest - largest // 2)
        return value + slope * (num_tokens - largest)


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
