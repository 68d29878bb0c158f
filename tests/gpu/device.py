"""The CUDA device on which the tests of this folder run, and what they need of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

CUDA = torch.device("cuda:0")


def on_cuda(capability_min: tuple[int, int] = (0, 0)) -> list[pytest.MarkDecorator]:
    """The marks of tests that need a CUDA device of that architecture or a newer one."""
    is_there = torch.cuda.is_available()
    return [
        pytest.mark.gpu,
        pytest.mark.skipif(not is_there, reason="needs a CUDA device; torch sees none here"),
        pytest.mark.skipif(
            is_there and torch.cuda.get_device_capability() < capability_min,
            reason=f"needs a GPU of architecture {'.'.join(map(str, capability_min))} or newer",
        ),
    ]


@contextmanager
def never_waiting() -> Iterator[None]:
    """Inside, whatever makes the host wait for the device raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
