"""What holds for all tests: services that run in this process use gRPC as those with one of their own do, and torch
computes on one thread, since threads only wait for one another on tensors as small as these."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from outrider.rpc.environment import GRPC_ENVIRONMENT

os.environ |= GRPC_ENVIRONMENT | os.environ  # before a test module imports grpc
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before one imports torch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A report travels to another process as UTF-8, and a log may hold what is none."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report
