"""The machine: cores, memory, instructions, huge pages, clock."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

from outrider.doctor.finding import Finding, Level
from outrider.machine import limits

_CORES_MIN = 2
"""One for the verifier, and one for the drafter beside it."""
_GIB = 2**30
_MEMORY_MIN = 2 * _GIB
"""What three services take with the bundled pair, and as much again."""

_BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")
_WIDE_FLAGS = ("avx512f", "avx2")
"""Instructions that the native operators are built for, as Linux names them, the faster ones first."""

_TIMEX_BYTES = 256
"""At least the size of Linux' `struct timex`; zeros ask for nothing but the state."""
_TIME_ERROR = 5
"""What adjtimex(2) returns while nobody keeps the clock right."""


def look_at_machine(root: Path = Path("/")) -> Iterator[Finding]:
    """What this process may use of its machine. `root` has `proc` and `sys` in it."""
    yield _cores(limits.num_cores(root))
    yield _memory(limits.memory_limit(root), limits.memory_left(root))
    yield from _instructions(root)
    yield from _huge_pages(root)
    yield from _clock()


def _cores(number: int) -> Finding:
    if number < _CORES_MIN:
        return Finding(
            Level.NOTE,
            "cores",
            f"{number}: on a CPU the drafter and the verifier take turns",
            "give the process more cores, or let one of both run on a GPU or on another machine",
        )
    return Finding(Level.GOOD, "cores", str(number))


def _memory(limit: int, left: int) -> Finding:
    text = f"{left / _GIB:.1f} GiB free of {limit / _GIB:.1f}"
    if left < _MEMORY_MIN:
        return Finding(Level.NOTE, "memory", text, "free some, raise the limit, or lower --kv-memory and --max-context")
    return Finding(Level.GOOD, "memory", text)


def _instructions(root: Path) -> Iterator[Finding]:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return
    flags = {word for line in text.splitlines() if line.startswith("flags") for word in line.split()}
    if not flags:
        return  # another kind of processor, of which this list knows nothing
    wide = [flag for flag in _WIDE_FLAGS if flag in flags]
    if not wide:
        yield Finding(
            Level.NOTE,
            "processor",
            "has no AVX2: workers on the CPU run on torch's operators, slower, and logits depend on the batch",
            "take a processor with AVX2 or AVX-512, or a GPU",
        )
        return
    fast = [flag for flag in _BFLOAT16_FLAGS if flag in flags]
    yield Finding(Level.GOOD, "processor", ", ".join([*wide[:1], *fast]))
    if fast:
        yield Finding(Level.GOOD, "bfloat16", "the processor multiplies it: --dtype bfloat16 is fastest")


def _huge_pages(root: Path) -> Iterator[Finding]:
    try:
        modes = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text().split()
    except OSError:
        modes = ["[never]"]
    chosen = next((mode.strip("[]") for mode in modes if mode.startswith("[")), "never")
    if chosen == "never":
        yield Finding(
            Level.NOTE,
            "huge pages",
            "the system has none: workers on the CPU read weights from small ones, on some machines half as fast",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    else:
        yield Finding(Level.GOOD, "huge pages", chosen)


def _clock() -> Iterator[Finding]:
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (AttributeError, OSError):
        return
    if adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)) == _TIME_ERROR:
        yield Finding(
            Level.NOTE,
            "clock",
            "nobody keeps it right: traces of services on several machines will not be in order; tokens are",
            "run an NTP client such as chrony",
        )
    else:
        yield Finding(Level.GOOD, "clock", "kept right")
