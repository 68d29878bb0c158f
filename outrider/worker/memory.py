"""The size of the KV cache: how much memory a worker gives to keys and values."""

from __future__ import annotations

import re

import torch

from outrider.machine.limits import memory_left
from outrider.worker.config import AUTO_KV_MEMORY

AUTO_SHARES = {"cuda": 0.5, "cpu": 0.25}
"""Largest share of what is available that `auto` takes, by the type of device. A GPU's memory is there for models, and
the rest of it for what passes through them; a computer's is there for much else, mostly for another worker too."""

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def kv_bytes(setting: str, device: torch.device, num_bytes_most: int) -> int:
    """How many bytes `setting` means on `device`: a size, a share of what is available, or `auto`.

    `auto` is `num_bytes_most`, the most that could ever be used, or a share of what is available if that is less. The
    setting has been checked against KV_MEMORY_PATTERN.
    """
    if setting == AUTO_KV_MEMORY:
        share = AUTO_SHARES.get(device.type, AUTO_SHARES["cpu"])
        return min(num_bytes_most, int(available_bytes(device) * share))
    number, unit = re.fullmatch(r"([\d.]+)\s*(\D+)", setting.lower()).groups()  # pyright: ignore
    if unit == "%":
        return int(available_bytes(device) * min(float(number), 100.0) / 100.0)
    return int(float(number) * _UNITS[unit])


def available_bytes(device: torch.device) -> int:
    """Memory that is free on `device` at this moment, or that the operating system would free at once."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return memory_left()
