"""The files of an image without a container engine: what its Dockerfile copies and installs, below a folder.

Each instruction of the build stage is carried out as it stands, with `/opt/outrider` moved below the folder. Two things
differ from an image: `apt-get` is left to the machine, and the interpreter is that which runs the tests.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

Instruction = tuple[str, str]
"""Its word, and its arguments as one text without line breaks."""

PREFIX = "/opt/outrider"
"""Where the Dockerfiles install."""

INSTALL_SECONDS_MAX = 1_500.0
"""Longest that one instruction may take: torch is large."""

_COPIED_NEVER = shutil.ignore_patterns("__pycache__", "built", "Dockerfile")
"""What `.dockerignore` takes out of the folders that it admits."""


def make_tree(repository: Path, stages: list[list[Instruction]], root: Path) -> None:
    """Makes the files of the final stage below `root`, by way of the build stage. Raises CalledProcessError."""
    build, final = stages
    source = root / "src"
    source.mkdir(parents=True)
    installed = f"{root}{PREFIX}"
    for word, arguments in build:
        if word == "RUN" and not arguments.startswith("apt-get"):
            _run(arguments.replace(PREFIX, installed), source, installed)
        elif word == "COPY":
            _copy(repository, shlex.split(arguments), source)
    for word, arguments in final:
        if word == "COPY" and not arguments.startswith("--from="):
            sources = shlex.split(arguments)
            _copy(repository, [*sources[:-1], f"{root}{sources[-1]}"], source)
    shutil.rmtree(source)  # the final stage has none of it


def variables_of(stages: list[list[Instruction]], root: Path) -> dict[str, str]:
    """What the final stage's ENV sets, and a path to a shell's own commands."""
    (arguments,) = (arguments for word, arguments in stages[-1] if word == "ENV")
    found = dict(variable.split("=", 1) for variable in shlex.split(arguments))
    return found | {"PATH": f"{root}{PREFIX}/bin:/usr/bin:/bin"}


def _run(command: str, source: Path, installed: str) -> None:
    # The interpreter below the tests' own virtual environment, as that of the base image would be.
    base = Path(sys.base_prefix) / "bin"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{installed}/bin:{base}:/usr/bin:/bin"
    subprocess.run(
        ["/bin/sh", "-ec", command],
        cwd=source,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=INSTALL_SECONDS_MAX,
    )


def _copy(repository: Path, arguments: Iterable[str], source: Path) -> None:
    *names, target = arguments
    to = source / target
    for name in names:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, to, ignore=_COPIED_NEVER, dirs_exist_ok=True)
        else:
            (to if to.is_dir() else to.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, to)
