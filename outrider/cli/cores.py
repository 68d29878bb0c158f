"""How services on one machine share its processor cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from outrider.machine import limits


class Cores(NamedTuple):
    """The cores of each service, as its `--cores` takes them: an empty string is any."""

    verifiers: Sequence[str]
    drafters: Sequence[str]
    others: str
    """Of the coordinators, and of drafters without a model."""


def available_cores() -> list[int]:
    """The cores that this process may run on; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def share_cores(available: Sequence[int], num_verifiers: int, num_drafters: int) -> Cores:
    """Shares `available` cores between workers that compute on the CPU; others do not count.

    Verifiers get one half and drafters the other: a drafter that never rests slows the verifier. The coordinators go
    with the drafters, who are the ones that can wait. Workers of one kind divide their half, or share all of it when it
    has too few cores. Where only one worker computes, it may use all cores.
    """
    nowhere = Cores([""] * num_verifiers, [""] * num_drafters, "")
    if num_verifiers + num_drafters < 2:
        return nowhere
    if not num_verifiers or not num_drafters:
        shares = _divided(available, num_verifiers or num_drafters)
        return Cores(shares, [], "") if num_verifiers else Cores([], shares, "")
    half = len(available) // 2
    if half == 0:
        return nowhere
    return Cores(
        _divided(available[:half], num_verifiers), _divided(available[half:], num_drafters), _text(available[half:])
    )


def num_cores(share: str) -> int:
    """How many cores a share names."""
    return len(share.split(",")) if share else 0


def num_threads(share: str) -> int:
    """How many threads keep a share busy: one a core, or fewer where a quota does not pay for all cores."""
    return max(1, num_cores(share) * limits.num_cores() // max(1, len(available_cores())))


def lent_cores(share: str, others: str) -> str:
    """Those of the `others`' cores that a verifier on a share may read prompts on: as many as a quota pays for."""
    num_lent = limits.num_cores() - num_threads(share)
    return ",".join(others.split(",")[: max(0, num_lent)]) if share else ""


def _divided(cores: Sequence[int], num_shares: int) -> list[str]:
    if len(cores) < num_shares:
        return [_text(cores)] * num_shares
    return [
        _text(cores[number * len(cores) // num_shares : (number + 1) * len(cores) // num_shares])
        for number in range(num_shares)
    ]


def _text(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores))
