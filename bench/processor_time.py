"""What a process has used of its processors. Linux only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def used_ns(process: int) -> int:
    """Processor time of all threads of a process, in nanoseconds: what else the machine does matters little."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def used_by_main_thread_ns(process: int) -> int:
    """The same of the thread alone that a process began with."""
    return int(Path(f"/proc/{process}/task/{process}/schedstat").read_text().split()[0])


def used_by_thread_ns(process: int) -> Mapping[int, int]:
    """The same of each thread, by its number: that of the one that a process began with is the process's own."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in tasks}


def num_switches(process: int) -> int:
    """How often a thread of the process has stopped running, because it waited or because others had their turn."""
    lines = (line for task in Path(f"/proc/{process}/task").iterdir() for line in (task / "status").open())
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def used_by_family_ns(process: int) -> int:
    """The same with that of all its children, the present ones and those that have ended, and of theirs."""
    used = 0
    with suppress(FileNotFoundError, ProcessLookupError):  # it may just have ended: its parent's count has it then
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[13]) + int(fields[14])  # of children that have been waited for
        used = used_ns(process) + ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{process}/task").iterdir():
            used += sum(map(used_by_family_ns, map(int, (task / "children").read_text().split())))
    return used
