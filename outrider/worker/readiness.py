"""Readiness: a worker whose device has had work for long and brings nothing to an end says that it does not serve."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from outrider.rpc.server import SetReady

_QUESTIONS = 4
"""How often the device is looked at within the time that a step may take: so much of it later a stall is found."""

_log = structlog.get_logger()


class Device(Protocol):
    """See `DeviceThread`."""

    is_busy: bool
    num_turns: int


class Readiness:
    """From `start` to `stop`, on the event loop."""

    def __init__(self, device: Device, set_ready: SetReady, stall_seconds: float) -> None:
        """A step of the device that takes `stall_seconds` is a stall, until it ends."""
        self._device = device
        self._set_ready = set_ready
        self._stall_seconds = stall_seconds
        self._num_turns = -1
        self._moved_at = 0.0
        self._is_ready = True
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The worker serves."""
        self._set_ready(True)
        self._look()

    def stop(self) -> None:
        """Looks no more."""
        if self._next is not None:
            self._next.cancel()

    def _look(self) -> None:
        loop, device = asyncio.get_running_loop(), self._device
        if not device.is_busy or device.num_turns != self._num_turns:
            self._num_turns, self._moved_at = device.num_turns, loop.time()
        is_ready = loop.time() - self._moved_at < self._stall_seconds
        if is_ready is not self._is_ready:
            self._is_ready = is_ready
            self._set_ready(is_ready)
            if is_ready:
                _log.info("the device gets on again")
            else:
                _log.error("the device is stuck: its step does not end", seconds=self._stall_seconds)
        self._next = loop.call_later(self._stall_seconds / _QUESTIONS, self._look)
