"""What a device can do at best, measured: a copy of memory, and a product of large matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from bench.gpu.clock import Clock
from bench.gpu.floor import Reach

_NUM_TRIALS = 10
"""The best one counts: whatever disturbs one makes it longer."""


class Sizes(NamedTuple):
    """How much work tells a device's reach."""

    copied_bytes: int
    """Many times what its caches hold."""
    product_width: int
    """Rows and columns of both matrices."""


SIZES = {"cuda": Sizes(2 << 30, 8192), "cpu": Sizes(64 << 20, 256)}


def measured_reach(device: torch.device, dtype: torch.dtype, clock: Clock) -> Reach:
    """Of `device`, with products of that type."""
    sizes = SIZES[device.type]
    return Reach(
        gb_per_s=2 * sizes.copied_bytes / _copy_ms(sizes.copied_bytes, device, clock) / 1e6,
        tflops=2 * sizes.product_width**3 / _product_ms(sizes.product_width, device, dtype, clock) / 1e9,
    )


def _copy_ms(num_bytes: int, device: torch.device, clock: Clock) -> float:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    destination = torch.empty_like(source)
    return _best_ms(lambda: destination.copy_(source), clock)


def _product_ms(width: int, device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    one, other = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return _best_ms(lambda: one @ other, clock)


def _best_ms(run: Callable[[], object], clock: Clock) -> float:
    run()
    found: list[float] = []
    for _ in range(_NUM_TRIALS):
        started = clock.now()
        run()
        found.append(clock.ms(started, clock.now()))
    return min(found)
