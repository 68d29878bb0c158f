"""When devices worked: spans of time, and how much of it two devices share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[int, int]
"""Start and end in nanoseconds of the system-wide monotonic clock."""


def clipped(spans: Iterable[Span], start: int, end: int) -> list[Span]:
    """The parts of `spans` between `start` and `end`, in order, with spans that touch or overlap joined."""
    joined: list[Span] = []
    for first, last in sorted((max(first, start), min(last, end)) for first, last in spans):
        if first >= last:
            continue
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def total(spans: Iterable[Span]) -> int:
    """Sum of lengths, in nanoseconds."""
    return sum(last - first for first, last in spans)


def shared(left: Sequence[Span], right: Sequence[Span]) -> int:
    """Nanoseconds that lie in both. Each list is in order and without overlap, as `clipped` returns it."""
    both = 0
    i = j = 0
    while i < len(left) and j < len(right):
        both += max(0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return both
