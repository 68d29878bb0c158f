"""The workspace of one compilation: a folder in the compile cache that goes with it, whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".unfinished"


@contextmanager
def workspace(cache: Path) -> Iterator[Path]:
    """A new folder in `cache`, which is made if need be. All that it holds is removed at the end.

    Those of processes that were killed are removed, too: each holds a lock that the kernel takes from the dead.
    Raises OSError.
    """
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as held:
        with _locked(cache):  # nobody finds a new folder before it has its lock
            _remove_abandoned(cache)
            folder = Path(tempfile.mkdtemp(dir=cache, suffix=_SUFFIX))
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            held.enter_context(_locked(folder))
        yield folder


def runs_nothing(folder: Path) -> bool:
    """Whether the system runs no machine code that lies in `folder`, which is there: it is mounted noexec.

    Raises OSError.
    """
    return bool(os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0))


def _remove_abandoned(cache: Path) -> None:
    for folder in cache.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError), _locked(folder, fcntl.LOCK_NB):
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    """Raises BlockingIOError if another process has it and `how` says not to wait."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(handle)
