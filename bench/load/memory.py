"""How much memory a process holds, and whether that grows."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

GROWTH_MAX = 4_000_000
"""Most bytes by which a service's resident memory may grow in ten minutes once it is warm. Above what allocators drift
by, and little enough to find whatever is forgotten with each request: at thirty requests a second it is 220 bytes of
each, where a forgotten session holds kilobytes."""

GROWTH_SECONDS = 600.0
"""The ten minutes."""

WARM_UP_SHARE = 0.5
"""Share of a soak at its beginning that is told but not judged: caches and allocators fill up once."""

SAMPLES_MIN = 8
"""Fewest samples that are judged."""

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
    warm_bytes: int
    """At the end of the warm-up."""
    last_bytes: int
    max_bytes: int
    growth_bytes: float
    """What the slope of the samples after the warm-up adds up to in ten minutes."""

    @property
    def flat(self) -> bool:
        """Whether that is within bounds."""
        return self.growth_bytes <= GROWTH_MAX


def resident_bytes(process: int) -> int:
    """Resident memory of the process with that id. Raises OSError if there is none."""
    fields = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()
    return int(fields[_RESIDENT_PAGES]) * _PAGE_BYTES


def growth(samples: Sequence[Sample]) -> Growth:
    """Judges samples, which are in order. Raises ValueError if there are too few."""
    judged = samples[int(WARM_UP_SHARE * len(samples)) :]
    if len(judged) < SAMPLES_MIN:
        raise ValueError(f"{len(samples)} samples of memory tell nothing; soak longer")
    return Growth(
        first_bytes=samples[0].num_bytes,
        warm_bytes=judged[0].num_bytes,
        last_bytes=samples[-1].num_bytes,
        max_bytes=max(each.num_bytes for each in samples),
        growth_bytes=_slope(judged) * GROWTH_SECONDS,
    )


def _slope(samples: Sequence[Sample]) -> float:
    """Bytes per second: the median of the slopes between any two samples (Theil 1950; Sen 1968).

    An allocator takes and gives back in lumps. Peaks, and a lump that comes once and stays, move few of the pairs, up
    to half of them where it comes in the very middle; what keeps growing, evenly or by steps, moves most.
    """
    return median(
        (later.num_bytes - earlier.num_bytes) / (later.seconds - earlier.seconds)
        for earlier, later in itertools.combinations(samples, 2)
    )
