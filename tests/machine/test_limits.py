"""What a process may use, read from trees of files as Linux and container runtimes lay them out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from outrider.machine import limits

GIB = 2**30
UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture(autouse=True)
def of_64_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


def tree(root: Path, groups: str, files: Mapping[str, str | int]) -> Path:
    """A root with the process in `groups`, and `files` below the place of control groups; 64 GiB, 48 of them free."""
    meminfo = f"MemTotal:       {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable:   {48 * GIB // 1024} kB\n"
    written = {"proc/self/cgroup": groups, "proc/meminfo": meminfo}
    for name, text in (written | {f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "num_cores"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000"}, 64),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "max 100000", "a/b/cpu.max": "25000 50000"}, 1),
        ("0::/a\n", {"a/cpu.max": "100000 0"}, 64),
        # A container that sees its own group as the topmost.
        ("0::/docker/abc\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/../../elsewhere\n", {"cpu.max": "400000 100000"}, 4),
        # Beside hierarchies of v1, as systemd mounts it.
        ("1:name=systemd:/x\n0::/a\n", {"unified/a/cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": 250000, "cpu,cpuacct/cpu.cfs_period_us": 100000}, 3),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": 250000, "cpu/cpu.cfs_period_us": 100000}, 3),
        ("4:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 64),
        ("4:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": 100000, "cpuset/cpu.cfs_period_us": 100000}, 64),
        (
            "4:cpu:/pod/one\n",
            {
                **{"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000},
                **{"cpu/pod/cpu.cfs_quota_us": 500000, "cpu/pod/cpu.cfs_period_us": 100000},
                **{"cpu/pod/one/cpu.cfs_quota_us": 600000, "cpu/pod/one/cpu.cfs_period_us": 100000},
            },
            5,
        ),
        ("", {"cpu.max": "200000 100000"}, 64),
    ],
)
def test_the_tightest_quota_on_the_way_bounds_cores(
    tmp_path: Path, groups: str, files: Mapping[str, str | int], num_cores: int
) -> None:
    assert limits.num_cores(tree(tmp_path, groups, files)) == num_cores


def test_a_process_uses_no_core_that_it_may_not_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert limits.num_cores(tree(tmp_path, "0::/\n", {"cpu.max": "400000 100000"})) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert limits.num_cores(tmp_path / "a system without such files") == 64


def memory_v2(group: str, limit: int | str, used: int, idle: int = 0) -> dict[str, str | int]:
    prefix = f"{group}/" if group else ""
    return {
        f"{prefix}memory.max": limit,
        f"{prefix}memory.current": used,
        f"{prefix}memory.stat": f"anon 5\ninactive_file {idle}\nactive_file 7",
    }


def memory_v1(group: str, limit: int | str, used: int, idle: int = 0) -> dict[str, str | int]:
    prefix = f"memory/{group}/" if group else "memory/"
    return {
        f"{prefix}memory.limit_in_bytes": limit,
        f"{prefix}memory.usage_in_bytes": used,
        f"{prefix}memory.stat": f"inactive_file 0\ntotal_inactive_file {idle}\ntotal_active_file 7",
    }


@pytest.mark.parametrize(
    ("groups", "files", "limit", "left"),
    [
        ("0::/pods/one\n", memory_v2("pods", 900, 500) | memory_v2("pods/one", 1000, 300, 50), 900, 400),
        ("0::/pods/one\n", memory_v2("pods", "max", 500) | memory_v2("pods/one", 1000, 300, 50), 1000, 750),
        ("0::/\n", memory_v2("", 1000, 1500), 1000, 0),
        # Slowed down before it is killed, by a group of its own or one around it.
        ("0::/\n", memory_v2("", 1000, 300) | {"memory.high": 800}, 800, 500),
        ("0::/\n", memory_v2("", "max", 300) | {"memory.high": 800}, 800, 500),
        ("0::/\n", memory_v2("", 1000, 300) | {"memory.high": "max"}, 1000, 700),
        ("0::/\n", memory_v2("", "max", 300) | {"memory.high": "max"}, 64 * GIB, 48 * GIB),
        ("0::/a/b\n", {**memory_v2("a", "max", 700), "a/memory.high": 900} | memory_v2("a/b", 1000, 300), 900, 200),
        ("0::/\n", memory_v2("", 128 * GIB, GIB), 64 * GIB, 48 * GIB),
        ("0::/\n", {}, 64 * GIB, 48 * GIB),
        ("", memory_v2("", 1000, 0), 64 * GIB, 48 * GIB),
        ("12:memory:/docker/abc\n0::/system.slice\n", memory_v1("docker/abc", 2 * GIB, GIB), 2 * GIB, GIB),
        ("12:memory:/docker/abc\n", memory_v1("", 2 * GIB, GIB, 512), 2 * GIB, GIB + 512),
        ("12:memory:/a\n", memory_v1("", 3 * GIB, GIB) | memory_v1("a", UNLIMITED_V1, GIB), 3 * GIB, 2 * GIB),
        ("12:memory:/\n", memory_v1("", UNLIMITED_V1, GIB), 64 * GIB, 48 * GIB),
    ],
)
def test_the_tightest_limit_on_the_way_bounds_memory(
    tmp_path: Path, groups: str, files: Mapping[str, str | int], limit: int, left: int
) -> None:
    root = tree(tmp_path, groups, files)
    assert limits.memory_limit(root) == limit
    assert limits.memory_left(root) == left


def test_without_files_the_machine_is_the_bound(tmp_path: Path) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits.memory_limit(tmp_path) == limits.memory_left(tmp_path) == physical


def test_this_machine_says_something() -> None:
    assert limits.num_cores() >= 1
    assert 0 < limits.memory_left() <= limits.memory_limit()
