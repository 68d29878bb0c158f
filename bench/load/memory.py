"""How much memory a process holds, and whether that grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from bench.resampling import Interval, bootstrap

GROWTH_MAX = 0.02
"""Most that a service's resident memory may be known to grow over a soak, as a share of what it holds in the middle.
Allocators drift by less once they are warm; a service that grew by as much every ten minutes would have doubled after
eight hours."""

WARM_UP_SHARE = 0.25
"""Share of a soak at its beginning that growth is not read from: caches and allocators fill up once."""

_NUM_PARTS = 12
"""Means that the slope is read from. Neighbouring samples say nearly the same, so resamples of them all would promise
too much."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_RESIDENT_PAGES = 1
"""Field of `/proc/PID/statm`."""


class Sample(NamedTuple):
    """Resident memory of one process at one moment."""

    seconds: float
    num_bytes: int


class Growth(NamedTuple):
    """What samples of one process over a soak come to."""

    first_bytes: int
    middle_bytes: int
    last_bytes: int
    max_bytes: int
    bytes_per_second: Interval
    """Slope of the line through the samples after the warm-up."""
    shares: Interval
    """What that slope adds up to over the whole soak, as a share of `middle_bytes`."""

    @property
    def flat(self) -> bool:
        """Whether that may be within GROWTH_MAX: allocators take and give back in lumps, so of a small service the line
        is not known well, and only growth that is not chance counts."""
        return self.shares.low <= GROWTH_MAX


def resident_bytes(process: int) -> int:
    """Resident memory of the process with that id. Raises OSError if there is none."""
    fields = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()
    return int(fields[_RESIDENT_PAGES]) * _PAGE_BYTES


def growth(samples: Sequence[Sample]) -> Growth:
    """Needs a handful of samples, in order. Raises ValueError if there are fewer than four."""
    if len(samples) < 4:
        raise ValueError(f"{len(samples)} samples of memory tell nothing; soak longer")
    settled = samples[int(WARM_UP_SHARE * len(samples)) :]
    num_parts = min(_NUM_PARTS, len(settled))
    parts = [
        settled[part * len(settled) // num_parts : (part + 1) * len(settled) // num_parts] for part in range(num_parts)
    ]
    points = [(fmean(each.seconds for each in part), fmean(each.num_bytes for each in part)) for part in parts]
    slope = bootstrap(points, _slope)
    middle = samples[len(samples) // 2].num_bytes
    seconds = samples[-1].seconds - samples[0].seconds
    return Growth(
        first_bytes=samples[0].num_bytes,
        middle_bytes=middle,
        last_bytes=samples[-1].num_bytes,
        max_bytes=max(each.num_bytes for each in samples),
        bytes_per_second=slope,
        shares=Interval(*(each * seconds / middle for each in slope)),
    )


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares. 0 where all points stand at one moment, as in a resample of one point alone."""
    middle_x, middle_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0
