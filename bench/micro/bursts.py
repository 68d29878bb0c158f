"""Bursts: what is measured arm by arm in turn, again and again, since what else a machine does changes with time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

KeyT = TypeVar("KeyT")
CostT = TypeVar("CostT")

_NUM_WARM_UPS: Final = 1
"""Bursts of each arm before the first that counts."""


async def in_turn(arms: Mapping[KeyT, Callable[[], Awaitable[CostT]]], num_bursts: int) -> Mapping[KeyT, list[CostT]]:
    """What so many bursts of each arm cost. Every other time the last arm comes first."""
    found: dict[KeyT, list[CostT]] = {key: [] for key in arms}
    for index in range(_NUM_WARM_UPS + num_bursts):
        for key in list(arms)[:: 1 if index % 2 else -1]:
            cost = await arms[key]()
            if index >= _NUM_WARM_UPS:
                found[key].append(cost)
    return found
