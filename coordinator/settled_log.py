"""Log of a state that may flap: at most one record a second, each saying what holds by then."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog

INTERVAL_SECONDS: Final = 1.0
"""Shortest time between two records: a worker whose health flaps must not fill the log."""

_log = structlog.get_logger()


class SettledLog:
    """Records the first change at once, and of the changes within the next second only the last one."""

    def __init__(self, **fields: Any) -> None:
        """`fields` are part of every record."""
        self._fields = fields
        self._pending: tuple[str, str, dict[str, Any]] | None = None
        self._num_pending = 0
        self._timer: asyncio.TimerHandle | None = None

    def info(self, event: str, **fields: Any) -> None:
        """A change for the better. Needs a running event loop."""
        self._change("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """A change that an operator should know."""
        self._change("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """A change that an operator should mend."""
        self._change("error", event, fields)

    def close(self) -> None:
        """Records what is pending now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._record()

    def _change(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self._pending = level, event, fields
        self._num_pending += 1
        if self._timer is None:
            self._on_interval()

    def _on_interval(self) -> None:
        had_changes = self._pending is not None
        self._record()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INTERVAL_SECONDS, self._on_interval) if had_changes else None

    def _record(self) -> None:
        if self._pending is None:
            return
        level, event, fields = self._pending
        if self._num_pending > 1:
            fields = {**fields, "changes": self._num_pending}
        getattr(_log, level)(event, **self._fields, **fields)
        self._pending, self._num_pending = None, 0
