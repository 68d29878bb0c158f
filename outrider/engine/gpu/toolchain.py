"""What Triton needs of a machine to compile and launch a kernel."""

from __future__ import annotations

import importlib.util
import shutil


def triton_problem() -> str:
    """Why Triton cannot launch anything here; empty if nothing speaks against it."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton makes its launchers with a C compiler, and there is none; install gcc"
    return ""
