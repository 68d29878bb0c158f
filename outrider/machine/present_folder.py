"""The present folder: what a user keeps there is not taken for a package of ours, or of those that we need."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_PACKAGES = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))
"""The folder that holds the packages of this process: it may be the present one, as in a checkout."""

_STANDARD_LIBRARY = os.path.dirname(os.__file__)

_VARIABLE = "PYTHONPATH"


def leave_out_present_folder(path: list[str], environ: MutableMapping[str, str]) -> None:
    """Takes it out of `path`, where this process looks for modules, and out of what those look through that it starts.

    `python -m` puts it there, before all others, and so does an empty entry in PYTHONPATH, which
    `PYTHONPATH=$PYTHONPATH:/some/folder` makes of a variable that is not set. Where the present folder was deleted the
    process goes on in the topmost one: torch cannot be imported where there is none. Call it before other imports.
    """
    try:
        present = os.path.realpath(os.getcwd())
    except OSError:
        os.chdir(present := os.sep)
    if present == _PACKAGES:
        return
    # Behind the standard library stands what is installed, wherever somebody stands.
    end = path.index(_STANDARD_LIBRARY) if _STANDARD_LIBRARY in path else len(path)
    path[:end] = [each for each in path[:end] if os.path.realpath(each) != present]
    if _VARIABLE in environ:
        entries = environ[_VARIABLE].split(os.pathsep)
        environ[_VARIABLE] = os.pathsep.join(each for each in entries if os.path.realpath(each) != present)
