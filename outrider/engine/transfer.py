"""Host-to-device copies from pinned memory, which the host does not wait for, and the device that threads are on."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_TYPE_CODES = {torch.int64: "q", torch.int32: "i"}

_ALIGNMENT_BYTES = 16
"""Kernels want what they read to begin at a multiple of so many bytes."""


def on(device: torch.device) -> AbstractContextManager[object]:
    """Inside, a GPU is the current one of this thread.

    Pinned memory, streams and kernels that name no device belong to the current one. Each thread begins on cuda:0,
    which a worker on cuda:1 must not touch: what it takes there is another worker's.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def send(parts: Sequence[Sequence[int]], device: torch.device, dtype: torch.dtype = torch.int64) -> list[Tensor]:
    """The parts on `device`, brought there by one queued copy. At least one of them holds a number."""
    numbers = array(_TYPE_CODES[dtype])
    step = _ALIGNMENT_BYTES // numbers.itemsize
    lengths: list[int] = []
    for part in parts:
        numbers.extend(part)
        num_missing = -len(part) % step
        numbers.extend([0] * num_missing)
        lengths += len(part), num_missing
    return list(queued(torch.frombuffer(numbers, dtype=dtype), device).split(lengths))[::2]


def queued(content: Tensor, device: torch.device) -> Tensor:
    """`content` on `device`, as soon as what is queued there is done."""
    return staged(content, device).to(device, non_blocking=True)


def staged(content: Tensor, device: torch.device) -> Tensor:
    """`content` where a copy to `device` can begin without the host.

    For a GPU that is page-locked memory, which torch's allocator hands out again only when the copy is done. From other
    memory the driver may wait for the device first.
    """
    return content.pin_memory() if device.type == "cuda" else content


def tensor_on(device: torch.device, values: Sequence[object], dtype: torch.dtype) -> Tensor:
    """`values` on `device`, queued behind what the device is doing instead of waiting for it."""
    return queued(torch.tensor(values, dtype=dtype), device)
