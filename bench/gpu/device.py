"""The device that is measured: what it is, and what is said where there is none."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping
from contextlib import suppress

import torch

from bench import machine
from outrider.core.protocol.errors import OutriderError

_ASKED = {"driver": "driver_version", "power_limit": "power.limit", "memory_clock": "clocks.max.memory"}
"""What nvidia-smi is asked for, and what a result calls it."""

_SECONDS_MAX = 60.0
"""A driver that hangs would take for ever."""


class NoDeviceError(OutriderError):
    """There is nothing to measure."""


def device_of(name: str, *, is_tiny: bool) -> torch.device:
    """The device of that name: cpu, cuda or cuda:N. Raises NoDeviceError if it is not there, or is a CPU and the models
    are not tiny."""
    device = torch.device(name)
    if device.type == "cpu" and is_tiny:
        return device
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        raise NoDeviceError(
            f"--device {name}: this measures a CUDA device, and torch {torch.__version__} finds "
            f"{torch.cuda.device_count() or 'none'} here; run it where there are an NVIDIA GPU, its driver and a torch "
            "that is built for CUDA, or try the code, whose figures then mean nothing, with --device cpu --shape tiny"
        )
    return torch.device("cuda", device.index or 0)


def facts(device: torch.device) -> dict[str, str | int | float]:
    """What a reader needs to judge figures of `device`."""
    found: dict[str, str | int | float] = {**machine.facts(), "device": device.type, "triton": _version("triton")}
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    return {
        **found,
        "device": properties.name,
        "device_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda or "",
        **_said_by_driver(f"GPU-{properties.uuid}"),
    }


def _said_by_driver(device: str) -> Mapping[str, str]:
    """Of the device with that identity; nothing where nvidia-smi is not there, or does not answer."""
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={','.join(_ASKED.values())}", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_MAX, check=True)
        return told(done.stdout)
    return {}


def told(line: str) -> dict[str, str]:
    """What a line of nvidia-smi says, by the names of results."""
    return dict(zip(_ASKED, (part.strip() for part in line.split(",")), strict=True))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
