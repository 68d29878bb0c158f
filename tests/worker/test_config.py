"""How many threads a worker takes that is not told."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from outrider.worker import config
from outrider.worker.config import WorkerConfig


@pytest.mark.parametrize(
    ("usable", "variable", "cores", "num_threads"),
    [
        (64, None, "", 32),
        (3, None, "", 1),
        (1, None, "", 1),
        (64, None, "4,5", 2),
        (8, None, "0,1,2,3", 4),
        (2, None, "0,1,2,3", 1),
        (64, "6", "", 6),
        (2, "64", "", 2),
        (8, "6", "4,5", 2),
        (8, "6,2", "", 6),
        (8, "0", "", 1),
        (8, "many", "", 4),
    ],
)
def test_threads_follow_what_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, usable: int, variable: str | None, cores: str, num_threads: int
) -> None:
    monkeypatch.setattr(config, "num_cores", lambda: usable)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    settings = {"model": "m", "listen": "", "cores": cores}
    assert WorkerConfig.model_validate(settings).num_threads == num_threads
    assert WorkerConfig.model_validate(settings | {"num_threads": 5}).num_threads == 5


def test_a_worker_that_is_told_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "num_cores", lambda: 64)
    monkeypatch.setenv("OUTRIDER_NUM_THREADS", "7")
    assert WorkerConfig(model="m", listen="").num_threads == 7


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run as users that no file of passwords knows."""

    def unknown(_: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert WorkerConfig(model="m", listen="").compile_cache == Path("/home/someone/.cache/outrider")
    monkeypatch.delenv("HOME")
    assert WorkerConfig(model="m", listen="").compile_cache == Path("/nonexistent/outrider")
