"""The shared library of the look-ups: one that came with the package, or one that is built here, in seconds.

`python -m outrider.lookup.library` builds the one that comes with a wheel or an image, into the package's own folder.
It runs on any processor of the machine's architecture. Building needs a compiler, but neither torch nor Python's
headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import platform
import shutil
import subprocess
from pathlib import Path

from outrider.core.protocol.errors import OutriderError
from outrider.machine.workspace import runs_nothing, workspace


class CannotBuildError(OutriderError):
    """There is no machine code for look-ups here; the text says why."""


_SOURCE = Path(__file__).with_name("ngrams.cpp")

BUILT_BEFOREHAND = _SOURCE.parent / "built"
"""Where the library lies that came with the package."""

COMPILERS = ("c++", "g++", "clang++")
"""Any of them will do; the first one that is there is taken."""

_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-shared", "-ffp-contract=off")
"""Without contraction: Python's additions and products are rounded one by one."""

_REASON_LENGTH_MAX = 200
"""Longest part of another program's message that is passed on."""


def load(cache: Path) -> ctypes.PyDLL:
    """The package's library, or the one in the folder `cache`, where it is built unless it is there.

    Calls keep the interpreter lock: each takes less time than it takes to get the lock back. Raises CannotBuildError.
    """
    path = next((path for folder in (BUILT_BEFOREHAND, cache) if (path := folder / _name()).exists()), None)
    path = path or build(cache)
    try:
        return ctypes.PyDLL(str(path))
    except OSError as error:
        if path.parent == cache:
            with contextlib.suppress(OSError):
                path.unlink()  # a broken one would be found again at every start
        raise CannotBuildError(f"{path} cannot be loaded ({error})") from error


def build(folder: Path) -> Path:
    """Builds the library into `folder`. Raises CannotBuildError."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise CannotBuildError("there is no C++ compiler")
    library = folder / _name()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if runs_nothing(folder):
            raise CannotBuildError(f"{folder} is mounted noexec")
        with workspace(folder) as scratch:
            unfinished = scratch / library.name
            subprocess.run(
                [compiler, *_FLAGS, str(_SOURCE), "-o", str(unfinished)],
                check=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            unfinished.replace(library)
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), f"status {error.returncode}")
        raise CannotBuildError(f"the compiler failed: {reason[:_REASON_LENGTH_MAX]}") from error
    except OSError as error:
        raise CannotBuildError(f"nothing can be built into {folder} ({error.strerror or error})") from error
    return library


def _name() -> str:
    """Of the library that is built from this source for this architecture."""
    digest = hashlib.sha256(f"{_FLAGS} {platform.machine()}".encode() + _SOURCE.read_bytes())
    return f"lookup-{digest.hexdigest()[:16]}.so"


if __name__ == "__main__":
    print(build(BUILT_BEFOREHAND))
