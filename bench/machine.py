"""Facts about the machine and the software that a figure was measured with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers


def facts() -> dict[str, str | int]:
    """What a reader needs to judge a figure."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
