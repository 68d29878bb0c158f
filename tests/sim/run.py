"""Runs as many schedules with crashes as are wanted: `python -m tests.sim.run NUMBER [FIRST]`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable

from .crashes import CrashingWorld

PROGRESS_SECONDS = 10.0
"""How often a long run says how far it is."""


class ScheduleError(AssertionError):
    """A schedule broke a promise."""


def run_schedules(seeds: Iterable[int]) -> Counter[str]:
    """What was seen in them. Raises ScheduleError, which names the seed that replays it."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        world = CrashingWorld(seed)
        try:
            world.run()
        except Exception as error:
            raise ScheduleError(
                f"schedule {seed} went wrong, CrashingWorld({seed}).run() replays it: {error!r}"
            ) from error
        seen.update(world.seen)
        seen["schedules"] += 1
        seen["faults"] += world.num_faults
        seen["resumed"] += world.client.num_asked - 1
        seen["tokens"] += len(world.client.received)
    return seen


def main() -> None:
    """Runs them in order, and says how far it is."""
    number = int(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    seen: Counter[str] = Counter()
    said = time.monotonic()
    for seed in range(first, first + number):
        seen.update(run_schedules([seed]))
        if time.monotonic() > said + PROGRESS_SECONDS:
            said = time.monotonic()
            print(f"{seen['schedules']} of {number} schedules", flush=True)
    print(dict(sorted(seen.items())))


if __name__ == "__main__":
    main()
