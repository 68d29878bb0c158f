"""The native operators, built once for a whole run.

Each worker builds them where nobody has before, for half a minute and on its own cores, and the first tests of a run
start several at once: what one of them does in vain, all of them do.
"""

from __future__ import annotations

import contextlib

from outrider.engine import library
from outrider.engine.library import CannotCompileError
from outrider.worker.config import default_compile_cache


def build() -> None:
    """On all cores, unless they are there. Who comes meanwhile waits; who cannot goes on without."""
    cache = default_compile_cache()
    if library.find(cache) is None:
        with contextlib.suppress(CannotCompileError):
            library.build(cache)
