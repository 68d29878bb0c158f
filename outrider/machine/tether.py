"""Runs a service that cannot outlive the command that started it: `python -m outrider.machine.tether MODULE ARGUMENT...`

The starter holds the other end of standard input and never writes to it. When the starter is gone, however it went, the
kernel closes that end, and the service's process ends at once. Unlike Linux's parent-death signal this needs no code
between fork and exec, and it works on every POSIX system.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

_STANDARD_INPUT = 0


def _end_with_starter() -> None:
    while os.read(_STANDARD_INPUT, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, name="tether", daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
