"""How many cores and how much memory this process may use: what the machine has, and what control groups leave of it.

A process is in one control group of each hierarchy, v1 or v2, and every group around that one bounds it too. Linux
tells all of it in files below `/proc` and `/sys`; other systems have none, and then the machine alone is the bound.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
_CGROUPS = "sys/fs/cgroup"
"""Where systems and container runtimes mount the hierarchies."""


def num_cores(root: Path = _ROOT) -> int:
    """How many cores this process may keep busy: as many as it may run on, and as its control groups' quotas pay for.

    A part of a core counts as one.
    """
    may_run_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota(group) for group in _groups(root, "cpu"))
    return max(1, min([may_run_on, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def memory_limit(root: Path = _ROOT) -> int:
    """The bytes that this process may use at most: the machine's memory, or less by its control groups' limits."""
    machine = _machine_memory(root).total
    return min([machine, *(memory.total for memory in _group_memories(root))])


def memory_left(root: Path = _ROOT) -> int:
    """The bytes that are free at this moment below every limit, or that the operating system would free at once."""
    machine = _machine_memory(root).left
    return max(0, min([machine, *(memory.left for memory in _group_memories(root))]))


_MEMORY_FILES = (
    ("memory.current", "memory.max", "memory.high"),  # of v2; beyond `high` a process is slowed down ever more
    ("memory.usage_in_bytes", "memory.limit_in_bytes"),  # of v1
)
"""What tells of a control group how much it uses, and by what it is bounded."""


class _Memory(NamedTuple):
    total: int
    left: int


def _machine_memory(root: Path) -> _Memory:
    text = _text(root / "proc/meminfo") or ""
    found = [re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE) for name in ("MemTotal", "MemAvailable")]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _Memory(*(int(number[1]) * 1024 if number else physical for number in found))


def _group_memories(root: Path) -> Iterator[_Memory]:
    for group in _groups(root, "memory"):
        for use, *bounds in _MEMORY_FILES:
            used = _number(group / use)
            limits = [limit for name in bounds if (limit := _number(group / name)) is not None]
            if used is None or not limits:
                continue
            # Pages of files that nobody has touched lately count as used, and are given up before anything fails. In
            # v1 those without `total_` leave out the groups within.
            statistics = _text(group / "memory.stat") or ""
            found = dict(re.findall(r"^((?:total_)?inactive_file) (\d+)$", statistics, re.MULTILINE))
            idle = int(found.get("total_inactive_file") or found.get("inactive_file") or 0)
            yield _Memory(min(limits), min(limits) - used + idle)


def _quota(group: Path) -> float | None:
    """How many cores' time a control group gets; None if there is no bound."""
    text = _text(group / "cpu.max")  # of v2
    if text is None:
        text = f"{_text(group / 'cpu.cfs_quota_us')} {_text(group / 'cpu.cfs_period_us')}"  # of v1
    found = re.fullmatch(r"(\d+) ([1-9]\d*)", text)  # without a bound the quota is "max" in v2, -1 in v1
    return int(found[1]) / int(found[2]) if found else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that bound `controller` for this process, each before those around it.

    A container may see its own group as the topmost, whatever the path says: folders that are not there say nothing.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            candidates = ("unified", "")  # v2; beside hierarchies of v1 it is mounted among them
        elif controller in controllers.split(","):
            candidates = (controllers, controller)
        else:
            continue
        mounts = (root / _CGROUPS / name for name in candidates)
        mount = next((mount for mount in mounts if mount.is_dir()), root / _CGROUPS)
        group = mount / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _number(path: Path) -> int | None:
    """None also for the word that there is no bound."""
    text = _text(path)
    return int(text) if text and text.isdecimal() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
