"""How many kernels a device runs for a forward pass, by its own record."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

_NO_KERNELS = ("Memcpy", "Memset")
"""What the names of copies and of fills begin with."""


def num_kernels(run: Callable[[], object], device: torch.device) -> int | None:
    """That `run` launches, replayed ones too; None where the device keeps no record."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize(device)
    return num_among(each.name for each in recorded.events() or () if each.device_type.name == "CUDA") or None


def num_among(names: Iterable[str]) -> int:
    """How many of a device's activities are kernels."""
    return sum(not name.startswith(_NO_KERNELS) for name in names)
