"""One direction of one stream, which now and then says something again."""

from __future__ import annotations

from collections import deque
from random import Random

from outrider.core.protocol.messages import Commitment, DraftWindow, EndDrafts, Verdict, VerifyFinished


class Closed:
    """The stream ends."""


Message = DraftWindow | Commitment | Verdict | VerifyFinished | EndDrafts | Closed


class Link:
    """One direction of one stream."""

    __slots__ = ("_past", "queue")

    def __init__(self) -> None:
        self.queue: deque[Message] = deque()
        self._past: list[Message] = []

    def take(self, rng: Random, repeat_rate: float) -> Message:
        """The next message; maybe an earlier one stands in line again behind it."""
        message = self.queue.popleft()
        self._past.append(message)
        if rng.random() < repeat_rate:
            self.queue.appendleft(rng.choice(self._past))
        return message
