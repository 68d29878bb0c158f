"""Stamp: by which a file that was written or replaced is told from the one that was read."""

from __future__ import annotations

import os
from collections.abc import Iterable

Stamp = tuple[tuple[int, int, int], ...]
"""For each file when it was written, its size, and which one it is. Links are followed: a mounted secret is replaced by
moving one."""


def stamp_of(paths: Iterable[str]) -> Stamp:
    """The files as they are now. Takes microseconds. Raises OSError."""
    found = [os.stat(path) for path in paths]
    return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)
