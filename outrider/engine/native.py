"""The operators of a CPU worker in machine code: built from the sources in `native/`, once for a machine, and loaded.

Whoever computes with one calls it by name: `attention/native.py`, `sample/native.py`, `compile/linear.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import platform
import subprocess
import tempfile
import weakref
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.cpp_extension import include_paths, library_paths

from outrider.core.protocol.errors import UnsupportedModelError


class CannotCompileError(UnsupportedModelError):
    """Machine code cannot be made here, or not be run; the text says why, and what to do about it."""


SOURCES = sorted((Path(__file__).parent / "native").iterdir())
"""The operators' sources."""

_OR_DO_WITHOUT = "or do without: --compile off, and no --attention-backend native"
_REASON_LENGTH_MAX = 200
"""Longest part of another program's message that is passed on."""

_FLAGS = ["-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
_loaded = False


def load(cache: Path) -> None:
    """Makes the operators known to torch, built into the folder `cache` unless it is there already.

    Raises CannotCompileError if they cannot be built or not be loaded.
    """
    global _loaded
    if _loaded:
        return
    recipe = f"{_FLAGS} {torch.__version__} {processor()}"
    fingerprint = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES) + recipe.encode()).hexdigest()[:16]
    library = cache / f"native-{fingerprint}.so"
    if not library.exists():
        _build(library)
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # packages look for the C functions among what is global
    except OSError as error:
        with contextlib.suppress(OSError):
            library.unlink()  # a broken one would be found again at every start
        raise CannotCompileError(
            f"the native operators cannot be loaded ({error}); if {cache} must not hold programs, choose another with "
            f"--compile-cache, {_OR_DO_WITHOUT}"
        ) from error
    torch.library.register_fake("outrider_native::ragged_attention", _fake_attention)
    torch.library.register_fake("outrider_native::linear", _fake_linear)
    torch.library.register_fake("outrider_native::gated_linear", _fake_gated_linear)
    _loaded = True


def processor() -> str:
    """What machine code may be used: two processors with the same answer run each other's."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")] if cpuinfo.exists() else []
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags[:1]}"


def package_runner(package: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """Loads a forward pass that was compiled ahead of time; the result runs it with the interpreter lock released.

    Raises CannotCompileError if that fails, as it does for a package that is broken.
    """
    try:
        number: int = torch.ops.outrider_native.load_package(str(package))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0][:_REASON_LENGTH_MAX]
        raise CannotCompileError(f"the package {package} cannot be loaded ({reason}); delete it") from error
    runner = partial(torch.ops.outrider_native.run_package.default, number)
    weakref.finalize(runner, torch.ops.outrider_native.unload_package, number)
    return runner


def has_linear(dtype: torch.dtype) -> bool:
    """Whether this processor has products of few rows of such numbers."""
    return bool(torch.ops.outrider_native.has_linear(dtype))


def available(device: torch.device) -> bool:
    """Whether the operators are loaded and work on tensors of `device`."""
    return _loaded and device.type == "cpu"


def integers(numbers: list[int]) -> Tensor:
    """[N], int64, in a quarter of the time that `torch.tensor` takes."""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


def _build(library: Path) -> None:
    includes = [f"-I{path}" for path in include_paths()]
    libraries = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    sources = [str(source) for source in SOURCES if source.suffix == ".cpp"]
    try:
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent, suffix=".unfinished") as folder:
            unfinished = Path(folder, library.name)
            command = [get_cpp_compiler(), *_FLAGS, *includes, *sources, "-o", str(unfinished), *libraries]
            subprocess.run([*command, "-lc10", "-ltorch_cpu"], capture_output=True, errors="replace", check=True)
            unfinished.replace(library)
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), f"status {error.returncode}")[:_REASON_LENGTH_MAX]
        raise CannotCompileError(
            f"the native operators cannot be built ({reason}); install a compiler for C++20, {_OR_DO_WITHOUT}"
        ) from error
    except InvalidCxxCompiler as error:
        raise CannotCompileError(f"there is no C++ compiler; install g++, {_OR_DO_WITHOUT}") from error
    except OSError as error:
        raise CannotCompileError(
            f"the native operators cannot be built in {library.parent} ({error.strerror}); choose another folder with "
            f"--compile-cache, {_OR_DO_WITHOUT}"
        ) from error


def _fake_linear(x: Tensor, panels: Tensor, bias: Tensor | None, num_outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], num_outputs)


def _fake_gated_linear(
    x: Tensor,
    gate: Tensor,
    gate_bias: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    num_inner: int,
    down: Tensor,
    down_bias: Tensor | None,
    num_outputs: int,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], num_outputs)


def _fake_attention(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
