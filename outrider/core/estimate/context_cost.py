"""What contexts add to a step: seconds for each cell of the KV cache that its sessions' lines take, learned online."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

_EFFECT_MIN = 0.03
"""Share by which the longer context must have made a step slower, or cells are held to cost nothing: the shortest of
three steps scatters by 1 or 2 %."""

_GAIN = 1 / 8
"""Weight of the newest step over as many cells as were timed. Sizes that were not timed at start, those of prompts, are
then known to 6 % after 300 steps each on a simulated device; with 1 / 64 they were off by a third."""

_EXCESS_MAX = 0.5
"""A step counts as at most this much slower than expected, as for the curve."""


class ContextTime(NamedTuple):
    """A step that was timed."""

    num_tokens: int
    num_cells: int
    """Of its sessions' lines together."""
    seconds: float


class ContextCost:
    """k(n), seconds a cell adds to a step of n tokens: never falling with n, a line between powers of two.

    A step of n tokens over c cells takes t(n) + k(n) c: what reads keys and values is bound by memory, and the more
    queries read them the dearer it may get.
    """

    __slots__ = ("_costs", "_num_cells", "sizes")

    def __init__(self, observations: Iterable[ContextTime] = ()) -> None:
        """Learns from steps of the same size over fewer and over more cells."""
        self.sizes: list[int] = []
        """Powers of two, rising: where the line bends. None if cells cost nothing, or if that is not known."""
        self._costs: list[float] = []
        """For each of them its k."""
        self._num_cells = 0
        """Most cells that were timed: steps over far fewer tell little."""
        by_size: dict[int, list[ContextTime]] = {}
        for each in observations:
            by_size.setdefault(_bucket(each.num_tokens), []).append(each)
        found = {size: _slope(steps) for size, steps in sorted(by_size.items())}
        if any(found.values()):
            self.sizes = list(found)
            self._costs = list(accumulate(found.values(), max))
            self._num_cells = max(each.num_cells for steps in by_size.values() for each in steps)

    def seconds(self, num_tokens: int) -> float:
        """k(num_tokens)."""
        sizes, costs = self.sizes, self._costs
        index = bisect_left(sizes, num_tokens)
        if index == len(sizes):
            return costs[-1] if costs else 0.0
        if index == 0 or sizes[index] == num_tokens:
            return costs[index]
        left, right = sizes[index - 1], sizes[index]
        return costs[index - 1] + (costs[index] - costs[index - 1]) * (num_tokens - left) / (right - left)

    def observe(self, step: ContextTime, without: float) -> None:
        """A step that would take `without` seconds if cells cost nothing. Where they do, nothing is learned."""
        if not self.sizes:
            return
        size, cells = _bucket(step.num_tokens), step.num_cells
        index = bisect_left(self.sizes, size)
        if index == len(self.sizes) or self.sizes[index] != size:
            self._costs.insert(index, self.seconds(size))
            self.sizes.insert(index, size)
        costs = self._costs
        expected = without + self.seconds(step.num_tokens) * cells
        error = min(step.seconds - expected, _EXCESS_MAX * expected)
        # The least mean squares step, by which few cells move it little.
        costs[index] = max(costs[index] + _GAIN * cells * error / (cells * cells + self._num_cells**2 / 4), 0.0)
        for smaller in range(index):
            costs[smaller] = min(costs[smaller], costs[index])
        for larger in range(index + 1, len(costs)):
            costs[larger] = max(costs[larger], costs[index])


def _bucket(num_tokens: int) -> int:
    """The power of two that stands for that many tokens."""
    return 1 << (num_tokens - 1).bit_length()


def _slope(steps: Sequence[ContextTime]) -> float:
    """What a cell adds between the shortest and the longest context; 0 if that cannot be told from chance."""
    shortest = min(steps, key=lambda each: each.num_cells)
    longest = max(steps, key=lambda each: each.num_cells)
    added = longest.seconds - shortest.seconds
    if added < _EFFECT_MIN * shortest.seconds or longest.num_cells == shortest.num_cells:
        return 0.0
    return added / (longest.num_cells - shortest.num_cells)
