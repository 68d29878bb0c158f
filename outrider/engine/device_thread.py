"""The engine loop: the one thread that owns the device. Everything else hands it work over a bounded inbox."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch

from outrider.core.protocol.errors import QueueFullError
from outrider.engine.transfer import on

INBOX_MAX = 4096
"""Most pieces of work that wait for the device thread. A worker with that much unread work is overloaded."""

CPU_NICENESS = 10
"""How far a device thread that computes on the CPU itself stands back from threads that pass messages on. Those run for
a tenth of a millisecond, and everything waits for them: of two services that shared a core with a busy thread, nine of
ten answers took up to 1.3 ms and ninety-nine of a hundred up to 8 ms; with this, both took 0.3 ms."""

STOP_SECONDS = 30.0
"""Longest wait for the step in progress when the thread is to end: a process must end though its device is stuck."""

Work = Callable[[], None]


class Worker(Protocol):
    """What the device thread drives."""

    def step(self) -> float | None:
        """Runs one step if one is due. Returns in how many seconds to call again: 0 at once, None when work arrives.

        A step handles the failures of its own sessions; an exception that leaves it ends the thread.
        """
        ...


class DeviceThread:
    """Runs work from the inbox and the worker's steps, in turn, without ever polling."""

    def __init__(self, worker: Worker, on_death: Callable[[BaseException], None], device: torch.device) -> None:
        """`on_death` is called on the device thread if the worker fails beyond repair."""
        self._worker = worker
        self._device = device
        self._niceness = CPU_NICENESS if device.type == "cpu" else 0
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._clock: int | None = None
        self.num_turns = 0
        """Times that it has asked the worker for a step."""
        self.is_busy = False
        """Whether it is at work; if not, it waits for work, or for the time of the next step."""

    @property
    def progress(self) -> int:
        """Rises whenever the thread gets on: with each turn, and with the processor time that it takes. Any thread."""
        try:
            return self.num_turns + (0 if self._clock is None else time.clock_gettime_ns(self._clock))
        except OSError:  # the thread has ended
            return self.num_turns

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Has `work` run before the next step. Raises QueueFullError; `work` itself must not raise."""
        if self._inbox.qsize() >= INBOX_MAX:
            raise QueueFullError(f"{INBOX_MAX} pieces of work wait for the device; try again later or elsewhere")
        self._inbox.put(work)

    def submit_close(self, work: Work) -> None:
        """Like `submit` for the one piece of work that ends a session. It is never refused: sessions are bounded."""
        self._inbox.put(work)

    def stop(self) -> None:
        """Ends the thread after the step in progress and waits for it, though not for a step that is stuck."""
        self._inbox.put(None)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            if self._niceness and sys.platform == "linux":
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
            if sys.platform == "linux":
                self._clock = time.pthread_getcpuclockid(threading.get_ident())
            with torch.inference_mode(), on(self._device):
                self._loop()
        except BaseException as error:
            self._on_death(error)
            raise

    def _loop(self) -> None:
        wait: float | None = None
        while True:
            try:
                self.is_busy = wait == 0
                work = self._inbox.get(timeout=wait) if wait != 0 else self._inbox.get_nowait()
                self.is_busy = True
                while True:
                    if work is None:
                        return
                    work()
                    work = self._inbox.get_nowait()
            except queue.Empty:
                pass
            self.is_busy = True
            self.num_turns += 1
            wait = self._worker.step()
