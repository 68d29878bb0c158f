"""Two CPU workers share the machine's cores by halves; a worker on a device of its own needs none."""

from __future__ import annotations

import os

import pytest

from outrider.cli.up import UpOptions, _cores


@pytest.mark.parametrize(
    ("available", "changes", "expected"),
    [
        ({0, 1}, {}, ("0", "1")),
        ({2, 3, 5, 7}, {}, ("2,3", "5,7")),
        ({4}, {}, ("", "")),
        ({0, 1}, {"draft": None}, ("", "")),
        ({0, 1}, {"draft": "ngram"}, ("", "")),
        ({0, 1}, {"target_device": "cuda:0"}, ("", "")),
    ],
)
def test_cores_are_halved_between_cpu_workers(
    monkeypatch: pytest.MonkeyPatch, available: set[int], changes: dict[str, str | None], expected: tuple[str, str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: available)
    assert _cores(UpOptions(**{"target": "target", "draft": "draft", **changes})) == expected
