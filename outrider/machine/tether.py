"""Runs a module in a process that cannot outlive its starter: `python -P tether.py FOLDER MODULE ARGUMENT...`

The starter holds the other end of standard input and never writes to it. When the starter is gone, however it went, the
kernel closes that end, and the process ends at once, with its process group if it leads one. Unlike Linux's
parent-death signal this needs no code between fork and exec, and it works on every POSIX system.

The module's packages are those in FOLDER. `-P` and a file to start from keep out what lies in the present folder: a
user's own `coordinator.py` or `signal.py` there is not taken for ours or for the standard library's.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path

_PACKAGES = Path(__file__).parents[2]
"""The folder that holds the packages of this process."""

_STANDARD_INPUT = 0

_UNTETHERED = "--untethered"


def tethered(module: str, *arguments: str, packages: Path = _PACKAGES, python: str = sys.executable) -> list[str]:
    """The command that runs `module` of `packages`; its standard input must be a pipe that its starter holds open."""
    return [python, "-P", "-u", __file__, str(packages), module, *arguments]


def untethered(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` of this process's packages alike, for a process that needs its standard input
    itself, and ends with it."""
    return [sys.executable, "-P", __file__, _UNTETHERED, str(_PACKAGES), module, *arguments]


def _end_with_starter() -> None:
    while os.read(_STANDARD_INPUT, 1):
        pass
    end = os.killpg if os.getpgrp() == os.getpid() else os.kill
    end(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == _UNTETHERED:
        del sys.argv[1]
    else:
        threading.Thread(target=_end_with_starter, name="tether", daemon=True).start()
    _, folder, *sys.argv = sys.argv
    if folder not in sys.path:
        sys.path.insert(0, folder)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
