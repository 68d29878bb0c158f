"""The bound of the KV cache: how much memory a worker may give to keys and values."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from outrider.machine.limits import memory_limit
from outrider.worker.config import AUTO_KV_MEMORY

AUTO_SHARE = 0.5
"""Largest share of the room that `auto` takes. The rest is for what passes through a model, and for everything else on
the machine."""

PROCESS_BYTES = 512 * 2**20
"""What a worker takes beside weights, keys and values: 0.4 GiB of interpreter, libraries and buffers, measured on a
CPU, and something for a step."""

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class Demand(NamedTuple):
    """What sessions could need for keys and values, in bytes."""

    session: int
    """One of them, at its longest."""
    sessions: int
    """All of them."""


def kv_bytes(setting: str, room: int, demand: Demand) -> int:
    """How many bytes `setting` means where there is `room` bytes: a size, a share of the room, or `auto`.

    `auto` is what all sessions could need, but at most AUTO_SHARE of the room; or, if that is too little for one
    session, all that one needs, as long as there is room. The setting has been checked against KV_MEMORY_PATTERN.
    """
    if setting == AUTO_KV_MEMORY:
        return min(demand.sessions, max(int(room * AUTO_SHARE), min(demand.session, room)))
    number, unit = re.fullmatch(r"([\d.]+)\s*(\D+)", setting.lower()).groups()  # pyright: ignore
    if unit == "%":
        return int(room * min(float(number), 100.0) / 100.0)
    return int(float(number) * _UNITS[unit])


def limit_bytes(device: torch.device) -> int:
    """The bytes that this process may use at most on `device`, whatever is free at the moment."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory_limit()


def room_bytes(device: torch.device, weight_bytes: int, share: float) -> int:
    """What there is for keys and values on `device`, where the weights are loaded already.

    On a GPU it is what is free at this moment. On a CPU it is the same at every start: the limit without the weights
    and what else the process takes, and of that the part `share`, since other workers have the others.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return int(max(limit_bytes(device) - weight_bytes - PROCESS_BYTES, 0) * share)
