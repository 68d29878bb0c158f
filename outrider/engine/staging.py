"""Staging: page-locked memory through which numbers go to a device, two halves of it in turn.

A copy that was queued reads its half later, maybe when the host stages the step after the next one. So a half is
written again only when an event behind the last of its copies has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

HALF_BYTES = 1 << 20
"""Bytes of a half. A step sends some kilobytes, with the longest contexts a few hundred: it takes several to fill a
half, and a host is two steps ahead of its device at most, so that it waits for no event unless something is stuck."""

_ALIGNMENT_BYTES = 64
"""What is staged begins at a multiple of so many bytes: any type may stand there, and no two share a cache line."""


class Event(Protocol):
    """A place in what is queued on a device."""

    def synchronize(self) -> None:
        """Waits until the device has come there. Raises torch.AcceleratorError if it has failed by then."""
        ...


class Staging:
    """The staging memory of one thread and one stream."""

    def __init__(
        self, allocate: Callable[[int], Tensor], record: Callable[[], Event], half_bytes: int = HALF_BYTES
    ) -> None:
        """`allocate` makes so many bytes of page-locked memory; `record` queues an event behind all that is queued."""
        self._halves = allocate(half_bytes), allocate(half_bytes)
        self._events: list[Event | None] = [None, None]
        """For each half what passes when the device has read all of it."""
        self._record = record
        self._half_bytes = half_bytes
        self._half = self._end = 0

    def stage(self, content: Tensor) -> Tensor | None:
        """`content` in page-locked memory; None if it is longer than a half.

        The copy from there must be queued before anything else is staged.
        """
        if content.nbytes > self._half_bytes:
            return None
        if self._end + content.nbytes > self._half_bytes:
            self._turn()
        place = self._halves[self._half][self._end : self._end + content.nbytes].view(content.dtype)
        self._end += -(-content.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return place.view(content.shape).copy_(content)

    def _turn(self) -> None:
        self._events[self._half] = self._record()
        self._half, self._end = 1 - self._half, 0
        if (event := self._events[self._half]) is not None:
            event.synchronize()
