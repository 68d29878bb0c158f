"""What a worker takes that is not told, and what it says of a folder that it may not read."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from outrider.settings import BadSettingsError
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
        (8, "-2", "", 4),
        (8, "2.5", "", 4),
        (8, "", "", 4),
        (8, ",2", "", 4),
        (8, " 3 ", "", 3),
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


def test_a_folder_that_this_user_may_not_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a volume's often is for a container's user, and never for root."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadSettingsError, match="--model: this user may not read the folder"):
        WorkerConfig.checked(model=str(tmp_path), listen="127.0.0.1:0")
