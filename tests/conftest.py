"""What holds for all tests: services that run in this process use gRPC as those with one of their own do, and torch
computes on one thread, since threads only wait for one another on tensors as small as these."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from outrider.rpc.environment import GRPC_ENVIRONMENT

os.environ |= GRPC_ENVIRONMENT | os.environ  # before a test module imports grpc
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before one imports torch


ROOMS_OF_ONE = ("tests/k8s/", "tests/openai/", "tests/page/")
"""Rooms whose files share what takes long to set up: services, a browser, what kubectl renders."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Each file runs in one process of several, and so does each of those rooms."""
    from xdist.scheduler import LoadFileScheduling

    class ByRoom(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((room for room in ROOMS_OF_ONE if nodeid.startswith(room)), super()._split_scope(nodeid))

    return ByRoom(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A report travels to another process as UTF-8, and a log may hold what is none."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report
