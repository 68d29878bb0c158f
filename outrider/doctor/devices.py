"""The devices that torch finds, told by a process of its own: torch is no part of a command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from outrider.doctor.finding import Finding, Level

_SECONDS_MAX = 120.0
"""Importing torch takes a second, from a cold disk a minute; a GPU's driver that hangs would take for ever."""

_ASK = """
import json, sys, torch
sys.path.append(sys.argv[1])
from outrider.engine.gpu.launcher import compiler_problem
from outrider.engine.gpu.trial import triton_problem
found = []
for number in range(torch.cuda.device_count()):
    facts = torch.cuda.get_device_properties(number)
    told = {"name": facts.name, "memory": facts.total_memory, "bfloat16": facts.major >= 8}
    told["no_kernels"] = triton_problem(torch.device("cuda", number))
    told["no_launchers"] = "" if told["no_kernels"] else compiler_problem()
    found.append(told)
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "devices": found}))
"""

_ROOT = Path(__file__).parents[2]
"""Where this installation lies."""

_GIB = 2**30


def look_at_devices(command: Sequence[str] = (sys.executable, "-P", "-c", _ASK, str(_ROOT))) -> Iterator[Finding]:
    """torch and its GPUs; nothing where torch is missing, which `look_at_packages` says. `command` prints them."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        yield Finding(
            Level.PROBLEM,
            "devices",
            f"torch does not find its devices within {_SECONDS_MAX:.0f} s",
            "see whether nvidia-smi answers; a driver that hangs needs the machine to start again",
        )
        return
    if "No module named 'torch'" in answer.stderr:
        return
    if answer.returncode != 0:
        words = (answer.stderr.strip().splitlines() or [f"status {answer.returncode}"])[-1]
        yield Finding(
            Level.PROBLEM, "torch", f"cannot be used: {words}", "install it again, as pytorch.org says for your machine"
        )
        return
    yield from _told(json.loads(answer.stdout))


def _told(found: dict[str, Any]) -> Iterator[Finding]:
    built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built for CPUs alone"
    yield Finding(Level.GOOD, "torch", f"{found['torch']}, {built}")
    if not found["devices"]:
        if found["cuda"]:
            yield Finding(
                Level.NOTE,
                "GPUs",
                "torch finds none",
                "see whether nvidia-smi shows one, and whether the driver is new enough",
            )
        else:
            yield Finding(Level.GOOD, "GPUs", "none; --target-device cuda needs a torch that is built for it")
    for number, device in enumerate(found["devices"]):
        text = f"{device['name']}, {device['memory'] / _GIB:.0f} GiB"
        if device["bfloat16"]:
            yield Finding(Level.GOOD, f"cuda:{number}", text)
        else:
            yield Finding(
                Level.NOTE, f"cuda:{number}", f"{text}; has no bfloat16", "pass --dtype float16 for its service"
            )
        if problem := device.get("no_kernels"):
            reason, _, advice = problem.partition("; ")
            yield Finding(Level.NOTE, "kernels", f"workers on cuda:{number} run without: {reason}", advice)
        if problem := device.get("no_launchers"):
            reason, _, advice = problem.partition("; ")
            text = f"workers on cuda:{number} launch them by libcuda, and compile nothing else: {reason}"
            yield Finding(Level.NOTE, "kernels", text, advice)
