"""Whoever crashes, freezes and comes back, the client's tokens are the toy target's own, each of them once, in time."""

from __future__ import annotations

from collections import Counter

from .crashes import ROLES
from .run import run_schedules

NUM_SCHEDULES = 240


def test_whoever_crashes_the_client_gets_the_targets_own_tokens_once() -> None:
    seen: Counter[str] = run_schedules(range(NUM_SCHEDULES))
    wanted = [f"{role} {fault}" for role in ROLES for fault in ("killed", "frozen", "vanished")]
    wanted += ["resumed", "verifier lost", "drafter replaced", "breach", "last word lost"]
    rare = {what: seen[what] for what in wanted}
    assert min(rare.values()) >= NUM_SCHEDULES // 40, f"some things hardly ever happened: {rare}"
    assert seen["request given up"] > 0
    assert seen["left by its client"] > 0
