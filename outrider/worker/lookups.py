"""Which n-gram tables a worker's sessions have: in machine code where that can be, else in Python."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import PyDLL
from functools import partial
from pathlib import Path

import structlog

from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.ngram_static import StaticNgrams
from outrider.lookup import library
from outrider.lookup.library import CannotBuildError
from outrider.lookup.ngrams import NativeNgrams


def native_lookups(cache: Path) -> PyDLL | None:
    """The library of the look-ups, built into the folder `cache` if need be, in seconds: not on an event loop.

    None, and a line in the log, where that cannot be.
    """
    try:
        return library.load(cache)
    except CannotBuildError as error:
        structlog.get_logger().info("look-ups are done in Python, which takes longer", reason=str(error))
        return None


def ngram_tables(native: PyDLL | None, static: StaticNgrams | None) -> Callable[[], Ngrams]:
    """What makes a session's table, empty, above `static` if there is one."""
    return partial(NgramTable, static=static) if native is None else NativeNgrams(native, static).table
