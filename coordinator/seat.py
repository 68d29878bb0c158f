"""Seat: one session's place at a replica, from the routing decision to `leave`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from outrider.core.protocol.errors import OutriderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.replica import Replica


class Seat:
    """Knows since when its session waits for the worker, and hears when that is not worth it any more."""

    __slots__ = ("can_move", "is_handed_over", "loss", "num_tokens", "on_loss", "replica", "taken_at", "waits_since")

    def __init__(self, replica: Replica, num_tokens: int, taken_at: float) -> None:
        self.replica = replica
        self.num_tokens = num_tokens
        """Length of the line that it began with."""
        self.taken_at = taken_at
        self.waits_since: float | None = taken_at
        """By the monotonic clock; None while it is the session that is waited for."""
        self.loss: OutriderError | None = None
        """Why the worker was left, if it was."""
        self.is_handed_over = False
        """Whether it was left because it is about to stop, which is nobody's fault."""
        self.can_move: Callable[[], bool] = lambda: True
        """Whether another worker of those that serve could take the session."""
        self.on_loss: Callable[[], None] = lambda: None
        """Called when the worker is left: it ends the session's stream."""

    def hears(self) -> None:
        """The worker said something, and the session is at work on it."""
        self.waits_since = None
        self.replica.on_event()

    def waits(self) -> None:
        """The session waits for the worker again."""
        self.waits_since = time.monotonic()

    def lose(self, loss: OutriderError, *, is_handed_over: bool = False) -> None:
        """The worker is left. It keeps the seat until `leave`."""
        self.loss, self.is_handed_over = loss, is_handed_over
        self.on_loss()

    def leave(self) -> None:
        """The session is not there any more. Calling it twice is harmless."""
        self.replica.leave(self)
