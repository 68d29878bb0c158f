"""A process that is forked rather than started, where that is one to who starts it.

It is a child of this process with an id, standard streams, a session and an exit status of its own; it can be waited
for, stopped and killed. What it is not: proof that the command starts. `tests/e2e/test_command_line.py` has that.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import uvloop

from bench.stack import checkout
from outrider.machine import tether
from tests.forkserver.order import Order

ROOT = str(Path(__file__).parents[2])

FORKED = {
    "bench.rivals.transformers_process",
    "bench.stack.colocated",
    "bench.stack.worker",
    "coordinator",
    "draft_service",
    "tests.parallel.follower",
    "verify_service",
}
"""Modules that are forked; other commands are started as ever."""

_SET_CHILD_SUBREAPER = 36
"""Linux's number for: who loses its parent below this process becomes a child of it."""


class _Server:
    """The process that forks others, which ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forkserver.server", str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, order: Order, streams: Sequence[int]) -> int:
        """Returns the id of the process, which has become a child of this one."""
        with self._turn:
            _adopt(True)
            try:
                socket.send_fds(self._socket, [order.as_json()], streams)
                answer = self._socket.recv(4)
            finally:
                _adopt(False)
        if not answer:
            raise RuntimeError(f"the fork server has ended with status {self._process.wait()}")
        return int.from_bytes(answer, "little")


@cache
def _server() -> _Server:
    return _Server()


def _adopt(orphans: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def arguments_of(command: Sequence[str]) -> Sequence[str] | None:
    """What a Python that runs this command has as `sys.argv`, if it is a command to fork."""
    match command:
        case [sys.executable, "-m", module, *_] if module in FORKED:
            return command[2:]
        case [sys.executable, "-P", "-u", tether.__file__, *tied]:
            match tied:
                case [_, checkout.__name__, sys.executable, *of_this_checkout]:
                    tied = of_this_checkout
            if tied[0] == ROOT and tied[1] in FORKED:
                return [tether.__file__, *tied]
    return None


class Process(subprocess.Popen[Any]):
    """`subprocess.Popen` that forks what is to be forked."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *more: Any) -> None:  # type: ignore[override]
        pass_fds, folder, environment, new_session = more[1], more[2], more[3], more[-2]
        pipes = more[7:13]
        arguments = arguments_of(args) if isinstance(args, list | tuple) else None
        if arguments is None or preexec_fn or pass_fds:
            super()._execute_child(args, executable, preexec_fn, *more)  # type: ignore[misc]
            return
        streams = [standard if given == -1 else given for standard, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        order = Order(
            list(map(os.fspath, arguments)),
            os.fspath(folder or os.getcwd()),
            dict(os.environ if environment is None else environment),
            new_session,
        )
        self.pid = _server().fork(order, streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


@contextmanager
def forking() -> Iterator[None]:
    """Whoever starts processes meanwhile has them forked, where there are subreapers."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setattr(subprocess, "Popen", Process)
            patch.setattr(uvloop, "new_event_loop", asyncio.new_event_loop)  # uvloop has its own way to start one
        yield
