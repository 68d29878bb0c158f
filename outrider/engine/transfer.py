"""Copies to a device and back that the host does not wait for, and the device that threads are on."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from outrider.engine.staging import Event, Staging

_ALIGNMENT_BYTES = 16
"""Kernels want what they read to begin at a multiple of so many bytes."""


def on(device: torch.device) -> AbstractContextManager[object]:
    """Inside, a GPU is the current one of this thread.

    Pinned memory, streams and kernels that name no device belong to the current one. Each thread begins on cuda:0,
    which a worker on cuda:1 must not touch: what it takes there is another worker's.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def send(parts: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """The parts on `device`, int64, brought there by one queued copy. At least one of them holds a number."""
    numbers = array("q")
    step = _ALIGNMENT_BYTES // numbers.itemsize
    lengths: list[int] = []
    for part in parts:
        numbers.extend(part)
        num_missing = -len(part) % step
        numbers.extend([0] * num_missing)
        lengths += len(part), num_missing
    return list(queued(torch.frombuffer(numbers, dtype=torch.int64), device).split(lengths))[::2]


def queued(content: Tensor, device: torch.device) -> Tensor:
    """`content` on `device`, as soon as what is queued there is done."""
    return staged(content, device).to(device, non_blocking=True)


def staged(content: Tensor, device: torch.device) -> Tensor:
    """`content` where a copy to `device` can begin without the host.

    For a GPU that is page-locked memory, which is written again only when the copy is done; the copy must be queued
    before anything else is staged. From other memory the driver may wait for the device first.
    """
    if device.type != "cuda":
        return content
    place = _staging(device).stage(content)
    return content.pin_memory() if place is None else place


class Fetched:
    """A tensor on its way to the host."""

    def __init__(self, content: Tensor) -> None:
        """On a GPU the copy is queued behind what makes `content`; elsewhere there is nothing to do."""
        device = content.device
        if device.type == "cuda":
            host = torch.empty(content.shape, dtype=content.dtype, pin_memory=True)
            content = host.copy_(content, non_blocking=True)
        self._content, self._arrival = content, mark(device)

    def wait(self) -> Tensor:
        """The tensor, as soon as it is there."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._content


def mark(device: torch.device) -> Event | None:
    """Passes when all that is queued on `device` by now is done; None where nothing is ever queued."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


class _Stagings(threading.local):
    """Those of one thread."""

    def __init__(self) -> None:
        self.of_stream: dict[torch.cuda.Stream, Staging] = {}


_stagings = _Stagings()


def _staging(device: torch.device) -> Staging:
    """That of this thread and of its current stream: an event says nothing of copies on another one."""
    stream = torch.cuda.current_stream(device)
    if (found := _stagings.of_stream.get(stream)) is None:
        with torch.inference_mode(False):  # it may be written to in any mode
            found = _stagings.of_stream[stream] = Staging(_page_locked, stream.record_event)
    return found


def _page_locked(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def tensor_on(device: torch.device, values: Sequence[object], dtype: torch.dtype) -> Tensor:
    """`values` on `device`, queued behind what the device is doing instead of waiting for it."""
    return queued(torch.tensor(values, dtype=dtype), device)
