"""Ratios of two modes that answered the same prompts, with bootstrap intervals."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

NUM_RESAMPLES = 4000
"""Resamples behind an interval: the 2.5 % tail then rests on a hundred of them (Efron and Tibshirani 1993, chapter 13,
ask for a thousand at least)."""

_CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate with its 95 % bootstrap interval, percentile method."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """How much longer the first of two modes took than the second, over the same prompts."""

    ratio_of_sums: Interval
    """All time of the one by all time of the other."""
    median_of_ratios: Interval
    """The middle one of the prompts' own ratios."""


def compare(slow: Sequence[float], fast: Sequence[float]) -> Comparison:
    """Times of two modes, paired by prompt: `slow[i]` and `fast[i]` answered the same one. Above 1: `fast` is faster.

    A resample draws prompts, never times alone, so that what both share (the prompt, the minute) cancels out. Raises
    ValueError if the lists differ in length or are empty.
    """
    pairs = list(zip(slow, fast, strict=True))
    if not pairs:
        raise ValueError("no pair to compare")
    return Comparison(
        bootstrap(pairs, lambda chosen: sum(a for a, _ in chosen) / sum(b for _, b in chosen)),
        bootstrap(pairs, lambda chosen: statistics.median(a / b for a, b in chosen)),
    )


def compare_passes(passes: Sequence[Sequence[tuple[float, float]]]) -> Interval:
    """All time of one mode by all time of another, over pairs that were measured in several passes.

    A resample draws passes, and from each of those pairs (Davison and Hinkley 1997, section 3.8): what disturbs a pass
    disturbs all of its pairs, so pairs alone would promise too much. Raises ValueError if there is no pair.
    """
    passes = [pairs for pairs in passes if pairs]
    if not passes:
        raise ValueError("no pair to compare")

    def ratio(drawn: Sequence[Sequence[tuple[float, float]]]) -> float:
        slow = sum(a for pairs in drawn for a, _ in pairs)
        return slow / sum(b for pairs in drawn for _, b in pairs)

    rng = random.Random(0)
    estimates: list[float] = []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.choices(passes, k=len(passes))
        estimates.append(ratio([rng.choices(pairs, k=len(pairs)) for pairs in drawn]))
    return _interval(ratio(passes), estimates)


def bootstrap(
    pairs: Sequence[tuple[float, float]], estimate: Callable[[Sequence[tuple[float, float]]], float]
) -> Interval:
    """The estimate over all pairs, and its interval over resamples. The same pairs give the same interval."""
    rng = random.Random(0)
    return _interval(estimate(pairs), [estimate(rng.choices(pairs, k=len(pairs))) for _ in range(NUM_RESAMPLES)])


def _interval(value: float, estimates: Sequence[float]) -> Interval:
    ordered = sorted(estimates)
    tail = (1.0 - _CONFIDENCE) / 2.0
    last = len(ordered) - 1
    return Interval(value, ordered[round(tail * last)], ordered[round((1.0 - tail) * last)])
