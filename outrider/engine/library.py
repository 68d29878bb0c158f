"""The shared library of the native operators: one that came with the package, or one that is built here.

`python -m outrider.engine.library` builds those that come with a wheel or an image, into the package's own folder. It
needs torch, in the release that is to run them, and a compiler.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.cpp_extension import include_paths, library_paths

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.machine.limits import num_cores
from outrider.machine.workspace import runs_nothing, workspace


class CannotCompileError(UnsupportedModelError):
    """Machine code cannot be made here, or not be run; the text says why, and what to do about it."""


_FOLDER = Path(__file__).parent / "native"
SOURCES = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".h", ".cpp"))
"""The operators' sources."""

BUILT_BEFOREHAND = _FOLDER / "built"
"""Where libraries lie that came with the package."""

_OR_DO_WITHOUT = "or do without: --compile off, and no --attention-backend native"
_REASON_LENGTH_MAX = 200
"""Longest part of another program's message that is passed on."""

_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fopenmp",
    "-fPIC",
    # for some processors GCC fuses no multiplication and addition in a loop with one sum, and does in one with several
    "--param=avoid-fma-max-bits=0",
)


class Level(NamedTuple):
    """Processors that run the same machine code."""

    flags: tuple[str, ...]
    """For the compiler."""
    needs: frozenset[str]
    """Features by which Linux names them."""


_V3 = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"})
_V4 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})

LEVELS = (
    Level(
        # tiles are used where the processor has them
        ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16"),
        _V4 | {"avx512_bf16", "avx512_vnni"},
    ),
    Level(("-march=x86-64-v4",), _V4),
    Level(("-march=x86-64-v3", "-mavxvnni"), _V3 | {"avx_vnni"}),
    Level(("-march=x86-64-v3",), _V3),
)
"""Of x86-64, the best one first. What they compute has the same bits in float32, and with weights in eight bits."""

_THIS_PROCESSOR = ("-march=native",)


def processor() -> str:
    """What machine code may be used: two processors with the same answer run each other's."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {sorted(_features())}"


def find(cache: Path) -> Path | None:
    """The library for this processor, the package's or the one in the folder `cache`; None if it is to be built."""
    fitting = [BUILT_BEFOREHAND / _name(level.flags) for level in LEVELS if level.needs <= _features()]
    return next((library for library in (*fitting, _of_this_processor(cache)) if library.exists()), None)


def build(cache: Path) -> Path:
    """Builds the library for this processor into the folder `cache`, which takes half a minute, or waits for another
    process that does.

    Raises CannotCompileError if it cannot be built.
    """
    library = _of_this_processor(cache)
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if runs_nothing(cache):
            raise _cannot_be_built(f"{cache} is mounted noexec")
        with _alone():
            if not library.exists():
                _build(library, _THIS_PROCESSOR)
    except OSError as error:
        raise _cannot_be_built(error.strerror or str(error)) from error
    return library


def build_beforehand(levels: Sequence[Level] = LEVELS) -> Iterator[Path]:
    """Builds the libraries for `levels` of x86-64, but those that are there; yields each when it is done.

    Raises CannotCompileError if that cannot be.
    """
    BUILT_BEFOREHAND.mkdir(exist_ok=True)
    for level in levels:
        library = BUILT_BEFOREHAND / _name(level.flags)
        if not library.exists():
            _build(library, level.flags)
        yield library


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Of the processes that share these sources one at a time; as many as come where their file system has no locks."""
    held = os.open(_FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _of_this_processor(cache: Path) -> Path:
    return cache / _name((*_THIS_PROCESSOR, processor()))


def _features() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), []))


def _name(recipe: Iterable[str]) -> str:
    """Of the library that is built so, from these sources and for this torch."""
    digest = hashlib.sha256(f"{_FLAGS} {[*recipe]} {torch.__version__}".encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return f"native-{digest.hexdigest()[:16]}.so"


def _build(library: Path, flags: tuple[str, ...]) -> None:
    try:
        compiler = get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise _cannot_be_built("there is no C++ compiler") from error
    command = (compiler, *_FLAGS, *flags, *(f"-I{path}" for path in include_paths()))
    libraries = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    with workspace(library.parent) as folder:
        objects = {str(source): f"{folder}/{source.stem}.o" for source in SOURCES if source.suffix == ".cpp"}
        commands = [[*command, "-c", source, "-o", made] for source, made in objects.items()]
        _run(commands)
        unfinished = Path(folder, library.name)
        _run([[*command, "-shared", *objects.values(), "-o", str(unfinished), *libraries, "-lc10", "-ltorch_cpu"]])
        unfinished.replace(library)


def _run(commands: Sequence[list[str]]) -> None:
    """As many at a time as there are cores. Without threads: an interpreter that ends would wait for them."""
    waiting, running = deque(commands), deque[subprocess.Popen[str]]()
    at_a_time = num_cores()
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                running.append(subprocess.Popen(waiting.popleft(), stderr=subprocess.PIPE, errors="replace"))
            _, stderr = running[0].communicate()
            status = running.popleft().returncode
            if status:
                said = stderr.strip().splitlines()
                errors = (line for line in said if "error" in line)  # after where it was included from
                raise _cannot_be_built(next(errors, said[0] if said else f"status {status}"))
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _cannot_be_built(reason: str) -> CannotCompileError:
    return CannotCompileError(
        f"the native operators cannot be built ({reason[:_REASON_LENGTH_MAX]}); install a compiler for C++20, or an "
        f"image or wheel that brings them, with a --compile-cache to write to and run from, {_OR_DO_WITHOUT}"
    )


def cannot_be_loaded(reason: str, folder: Path) -> CannotCompileError:
    """The error for a library in `folder` that the system does not load."""
    return CannotCompileError(
        f"the native operators cannot be loaded ({reason}); if {folder} must not hold programs, choose another with "
        f"--compile-cache, {_OR_DO_WITHOUT}"
    )


if __name__ == "__main__":
    for built in build_beforehand():
        print(built)
