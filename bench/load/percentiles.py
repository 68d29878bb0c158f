"""Percentiles of observations that count several times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHARES = (0.5, 0.9, 0.99)
"""What is told of every distribution."""


def percentile(observations: Iterable[tuple[float, int]], share: float) -> float:
    """The smallest observed value such that at least `share` of all observations are no larger (the nearest rank).

    Each observation comes with how often it was made. Raises ValueError if there is none.
    """
    ordered = sorted(observations)
    total = sum(count for _, count in ordered)
    if not total:
        raise ValueError("no observation")
    seen = 0
    for value, count in ordered:
        seen += count
        if seen >= share * total:
            return value
    return ordered[-1][0]


def percentiles(observations: Sequence[tuple[float, int]]) -> dict[str, float] | None:
    """`p50`, `p90` and `p99`; None if there is no observation."""
    if not observations:
        return None
    return {f"p{100 * share:g}": percentile(observations, share) for share in SHARES}
