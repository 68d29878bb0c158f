"""The door through which all kernels are launched: how they round, and by whose launchers they go to the device."""

from __future__ import annotations

import shutil
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

FUSES = False
"""Whether a product and the sum that takes it may be rounded once, together. Not so: each is rounded, as in the
interpreter that tests the kernels, whatever Triton's default is, which changes from one release to the next."""

_COMPILERS = ("gcc", "clang")
"""Which ones Triton looks for where CC names none."""


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Queues `kernel`, a function of Triton's, on the current stream of the current device."""
    _take_driver()
    kernel[grid](*arguments, enable_fp_fusion=FUSES, **options)


@cache
def _take_driver() -> None:
    if not compiler_problem():
        return
    from triton.runtime import driver  # pyright: ignore[reportMissingImports]

    from outrider.engine.gpu.driver import LibcudaDriver  # it wants Triton

    driver.set_active(LibcudaDriver())


def compiler_problem() -> str:
    """Why Triton cannot compile launchers of its own, in words; empty if it can. Without them `driver.py` launches."""
    from triton import knobs  # pyright: ignore[reportMissingImports]

    build: Any = knobs.build
    if not any(map(shutil.which, [build.cc] if build.cc else _COMPILERS)):
        return "Triton makes its launchers with a C compiler, and there is none; install gcc, or name one with CC"
    return headers_problem()


def headers_problem() -> str:
    """Why nothing can be compiled that this Python is to load; empty if it can."""
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "the headers of Python are missing; install python3-dev"
    return ""
