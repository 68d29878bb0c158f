"""SIGTERM and SIGINT before a service listens for them, and when it has drained: it ends at once, with a word.

What it has begun by then is nothing that anyone waits for, and what it has started, such as a compiler, ends with it.
As process 1 of a container it would not even end: the kernel gives that process no signal for which it has no handler.
A server that runs has handlers of its own.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from outrider.machine.descendants import kill_descendants

_STANDARD_ERROR = 2

_STATUS = {signal.SIGTERM: 0, signal.SIGINT: 130}
"""Who sends SIGTERM wants just this. SIGINT is reported as shells do: libraries raise it, too, when threads run out."""


def end_at_once_unless_serving(service: str) -> None:
    """Call it before slow imports. `service` is the name by which the process says that it ends."""

    def end(number: int, _: FrameType | None) -> None:
        received = signal.Signals(number)
        kill_descendants()
        os.write(_STANDARD_ERROR, f"{service}: stopped at once by {received.name}\n".encode())
        os._exit(_STATUS[received])

    for number in _STATUS:
        signal.signal(number, end)
