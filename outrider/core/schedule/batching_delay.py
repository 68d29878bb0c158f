"""When a step starts and who goes along, where several sessions share one and some expect drafts any moment.

A step over many sessions takes little longer than one over few, so it is a loss to start one for those who are ready a
moment before the others: these would either go without their drafts or wait until it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_STARTS_MAX = 8
"""Most later starts that are weighed: drafts of many sessions come in a burst, the first few of which tell."""


class Prospect(NamedTuple):
    """What a session that is to take part in a step hopes for. All times are in seconds, on one clock."""

    ready_at: float
    """When it is, or was, ready: when its drafts are expected, or since when it waits for nothing but the others."""
    gain: float
    """By how much its run of luck is expected to be shorter if it goes then, rather than at once; 0 once it is ready.
    See `Patience`."""


def start(prospects: Sequence[Prospect], now: float, step: float) -> float:
    """When the next step, which takes `step`, should start: the time that costs all sessions together the least.

    Who is ready waits until then. Who is not yet ready by then goes without its drafts and loses its gain, or stays
    behind and waits until the step ends, whichever is less. At most `step` after the first was ready, and not before
    somebody is. `prospects` must not be empty.
    """
    first = min(prospect.ready_at for prospect in prospects)
    if first > now:
        return first
    later = sorted({prospect.ready_at for prospect in prospects if now < prospect.ready_at <= first + step})
    return min((now, *later[:_STARTS_MAX]), key=lambda start: _cost(prospects, start, step))


def goes(prospect: Prospect, start: float, step: float) -> bool:
    """Whether a session goes along in a step from `start` on: if it is ready, or staying behind would cost it more."""
    return prospect.ready_at <= start or start + step - prospect.ready_at > prospect.gain


def _cost(prospects: Sequence[Prospect], start: float, step: float) -> float:
    total = 0.0
    for ready_at, gain in prospects:
        if ready_at <= start:
            total += start - ready_at
        elif (delay := start + step - ready_at) > 0.0:
            total += min(delay, gain)
    return total
