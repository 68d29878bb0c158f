"""Memory of a worker: whether its weights find room, and how much it may give to keys and values."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.checkpoint import StoredTensor, read_checkpoint
from outrider.engine.load.folder import DTYPES
from outrider.machine.limits import memory_limit
from outrider.worker.config import AUTO_KV_MEMORY

AUTO_SHARE = 0.5
"""Largest share of the room that `auto` takes where it is not known what passes through a model. The rest is for that,
and for everything else on the machine."""

GPU_SHARE = 0.88
"""Largest share of a GPU's room that `auto` takes, what a step takes at its peak included. The rest is for captured
graphs, for the workspaces of libraries, and for memory that is free in pieces too small to be of use."""

PROCESS_BYTES = 512 * 2**20
"""What a worker takes beside weights, keys and values: 0.4 GiB of interpreter, libraries and buffers, measured on a
CPU, and something for a step."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""What safetensors calls the types of numbers that are converted as they are read."""

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class Demand(NamedTuple):
    """What sessions could need for keys and values, in bytes."""

    session: int
    """One of them, at its longest."""
    sessions: int
    """All of them."""


def kv_bytes(setting: str, room: int, demand: Demand, peak: int | None = None) -> int:
    """How many bytes `setting` means where there is `room` bytes: a size, a share of the room, or `auto`.

    `auto` is what all sessions could need, but at most AUTO_SHARE of the room, or if a step's `peak` was measured,
    GPU_SHARE of the room less that; or, if that is too little for one session, all that one needs, as long as there is
    room. The setting has been checked against KV_MEMORY_PATTERN.
    """
    if setting == AUTO_KV_MEMORY:
        most = int(room * AUTO_SHARE) if peak is None else int(room * GPU_SHARE) - peak
        return min(demand.sessions, max(most, min(demand.session, room - (peak or 0))))
    number, unit = re.fullmatch(r"([\d.]+)\s*(\D+)", setting.lower()).groups()  # pyright: ignore
    if unit == "%":
        return int(room * min(float(number), 100.0) / 100.0)
    return int(float(number) * _UNITS[unit])


def check_weights(folder: Path, dtype: str, limit: int) -> None:
    """Raises UnsupportedModelError if the weights alone take more bytes than the `limit` that a process has: the system
    would kill it while it loads them, without a word."""
    num_bytes = sum(_held_bytes(tensor, dtype) for tensor in read_checkpoint(folder))
    if num_bytes > limit:
        raise UnsupportedModelError(
            f"the weights of {folder} take {num_bytes / 1e9:.3g} GB, and this process may use {limit / 1e9:.3g} GB; "
            "allow it more memory, or take a smaller model or a narrower --dtype"
        )


def _held_bytes(tensor: StoredTensor, dtype: str) -> int:
    """The least that a stored tensor takes; one of few bits takes more once it is de-quantised."""
    is_converted = dtype in DTYPES and tensor.dtype in _FLOATS
    return math.prod(tensor.shape) * DTYPES[dtype].itemsize if is_converted else tensor.end - tensor.begin


def limit_bytes(device: torch.device) -> int:
    """The bytes that this process may use at most on `device`, whatever is free at the moment."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory_limit()


def room_bytes(device: torch.device, weight_bytes: int, share: float) -> int:
    """What there is for keys and values on `device`, where the weights are loaded already.

    On a GPU it is what is free at this moment. On a CPU it is the same at every start: the limit without the weights
    and what else the process takes. Of that it is the part `share`, since other workers have the others.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0] * share)
    return int(max(limit_bytes(device) - weight_bytes - PROCESS_BYTES, 0) * share)
