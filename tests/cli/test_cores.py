"""CPU workers share the machine's cores: by halves, and each half among those of a kind."""

from __future__ import annotations

import os

import pytest

from outrider.cli import cores
from outrider.cli.cores import Cores, available_cores, lent_cores, num_cores, num_threads, share_cores


@pytest.mark.parametrize(
    ("available", "num_verifiers", "num_drafters", "expected"),
    [
        ([0, 1], 1, 1, Cores(["0"], ["1"], "1")),
        ([2, 3, 5, 7], 1, 1, Cores(["2,3"], ["5,7"], "5,7")),
        ([0, 1, 2], 1, 1, Cores(["0"], ["1,2"], "1,2")),
        ([4], 1, 1, Cores([""], [""], "")),
        ([], 2, 1, Cores(["", ""], [""], "")),
        ([0, 1], 1, 0, Cores([""], [], "")),
        ([0, 1], 0, 1, Cores([], [""], "")),
        ([0, 1], 0, 0, Cores([], [], "")),
        (range(8), 2, 2, Cores(["0,1", "2,3"], ["4,5", "6,7"], "4,5,6,7")),
        (range(8), 3, 1, Cores(["0", "1", "2,3"], ["4,5,6,7"], "4,5,6,7")),
        ([0, 1], 2, 2, Cores(["0", "0"], ["1", "1"], "1")),
        (range(4), 2, 0, Cores(["0,1", "2,3"], [], "")),
        (range(4), 0, 3, Cores([], ["0", "1", "2,3"], "")),
    ],
)
def test_cores_are_shared_between_cpu_workers(
    available: list[int], num_verifiers: int, num_drafters: int, expected: Cores
) -> None:
    assert share_cores(available, num_verifiers, num_drafters) == expected


def test_available_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1}, raising=False)
    assert available_cores() == [1, 3]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == []


def test_a_share_names_its_cores() -> None:
    assert num_cores("4,5,6") == 3
    assert num_cores("") == 0


@pytest.mark.parametrize(("usable", "expected"), [(16, 4), (4, 1), (7, 1), (8, 2), (1, 1)])
def test_threads_of_a_share_are_its_part_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, usable: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cores.limits, "num_cores", lambda: usable)
    assert num_threads("4,5,6,7") == expected


@pytest.mark.parametrize(
    ("usable", "share", "others", "expected"),
    [
        (2, "0", "1", "1"),
        (8, "0,1,2,3", "4,5,6,7", "4,5,6,7"),
        (8, "0,1", "4,5,6,7", "4,5,6,7"),
        (6, "0,1,2,3", "4,5,6,7", "4,5,6"),
        (1, "0", "1", ""),
        (2, "", "", ""),
        (2, "0", "", ""),
    ],
)
def test_drafters_lend_the_cores_that_a_quota_pays_for(
    monkeypatch: pytest.MonkeyPatch, usable: int, share: str, others: str, expected: str
) -> None:
    num_available = max(num_cores(share) + num_cores(others), 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_available)), raising=False)
    monkeypatch.setattr(cores.limits, "num_cores", lambda: usable)
    assert lent_cores(share, others) == expected
