"""Standard streams of a process that was started without some of them, as with `2>&-`."""

from __future__ import annotations

import os
import sys

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""In the order of their numbers."""


def open_standard_streams() -> None:
    """Puts the null device in the place of each standard stream that is closed. Else the first socket that the process
    opens would have its number, and be written to by whatever writes to that stream. Call it before slow imports."""
    for number, (name, mode) in enumerate(_MODES.items()):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
