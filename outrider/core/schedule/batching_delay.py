"""When a step starts and who goes along, where several sessions share one and some expect drafts any moment.

A step over many sessions takes little longer than one over few, so it is a loss to start one for those who are ready a
moment before the others: these would either go without their drafts or wait until it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_STARTS_MAX = 8
"""Most later starts that are weighed: drafts of many sessions come in a burst, the first few of which tell."""


class ReadyTime(NamedTuple):
    """What a session that is to take part in a step hopes for. All times are in seconds, on one clock."""

    ready_at: float
    """When it is, or was, ready: when its drafts are expected, or since when it waits for nothing but the others."""
    gain: float
    """By how much its run of luck is expected to be shorter if it goes then, rather than at once; 0 once it is ready.
    See `DraftWait`."""


def start(ready_times: Sequence[ReadyTime], now: float, step: float) -> float:
    """When the next step, which takes `step`, should start: the time that costs all sessions together the least.

    Who is ready waits until then. Who is not yet ready by then goes without its drafts and loses its gain, or stays
    behind and waits until the step ends, whichever is less. At most `step` after the first was ready, and not before
    somebody is. `ready_times` must not be empty.
    """
    first = min(ready_time.ready_at for ready_time in ready_times)
    if first > now:
        return first
    later = sorted({ready_time.ready_at for ready_time in ready_times if now < ready_time.ready_at <= first + step})
    return min((now, *later[:_STARTS_MAX]), key=lambda start: _cost(ready_times, start, step))


def goes(ready_time: ReadyTime, start: float, step: float) -> bool:
    """Whether a session goes along in a step from `start` on: if it is ready, or staying behind would cost it more."""
    return ready_time.ready_at <= start or start + step - ready_time.ready_at > ready_time.gain


def _cost(ready_times: Sequence[ReadyTime], start: float, step: float) -> float:
    total = 0.0
    for ready_at, gain in ready_times:
        if ready_at <= start:
            total += start - ready_at
        elif (delay := start + step - ready_at) > 0.0:
            total += min(delay, gain)
    return total
