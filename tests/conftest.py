"""What holds for all tests: services that run in this process use gRPC as those with one of their own do, torch
computes on one thread, since threads only wait for one another on tensors as small as these, and a slow machine fails
no test."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from outrider.rpc.environment import GRPC_ENVIRONMENT

os.environ |= GRPC_ENVIRONMENT | os.environ  # before a test module imports grpc
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before one imports torch
os.environ.setdefault("TORCH_WARM_POOL", "0")  # processes that wait for kernels of Triton: on a CPU there are none


ROOMS_OF_ONE = ("tests/bench/loads/", "tests/k8s/", "tests/openai/", "tests/page/")
"""Rooms whose files share what takes long to set up: a measurement, services, a browser, what kubectl renders."""


QUICK_ROOMS = ("chat", "client", "coordinator", "core", "lookup", "plan", "rpc")
"""Rooms of files of a second or two. They come last, so that no process waits for another's long one at the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick rooms come last; else all stays in the order of the folders."""
    items.sort(key=lambda item: item.nodeid.startswith(tuple(f"tests/{room}/" for room in QUICK_ROOMS)))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Examples have no deadline. A profile that the command line names comes after this one."""
    if config.pluginmanager.has_plugin("hypothesispytest"):
        from hypothesis import settings

        settings.register_profile("unhurried", deadline=None)
        settings.load_profile("unhurried")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What there is by now stays: it is not looked through again whenever the interpreter looks for rings. And where
    processes share tests that compute, what all of them need is built before any of these waits for it."""
    gc.freeze()
    if hasattr(session.config, "workerinput") and "torch" in sys.modules:
        from tests import machine_code

        machine_code.build()


@pytest.fixture(scope="module")
def forked() -> Iterator[None]:
    """Services that the module starts are forked of a process that has imported what they import."""
    from tests.forkserver.process import forking

    with forking():
        yield


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
