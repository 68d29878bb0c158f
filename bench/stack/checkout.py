"""Services of a checkout of the repository, this one or another: `python -m bench.stack.checkout PYTHON ROOT MODULE
ARGUMENT...` becomes that module, run by that Python with the checkout's own sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from outrider.core.protocol.errors import OutriderError
from outrider.machine.tether import tethered


class NotACheckoutError(OutriderError):
    """A folder holds no sources of Outrider."""


class Checkout(NamedTuple):
    """Sources, and what runs them."""

    root: Path
    python: Path

    def command(self, module: str) -> Sequence[str]:
        """What to run with this process's Python to have `module` of the checkout."""
        return (__name__, str(self.python), str(self.root), module)


def checkout_at(root: Path, python: Path | None = None) -> Checkout:
    """The checkout in the folder `root`, with its own virtual environment's Python unless another is named or it has
    none: then this process's. Raises NotACheckoutError."""
    root = root.resolve()
    missing = [
        name for name in ("outrider", "coordinator", "draft_service", "verify_service") if not (root / name).is_dir()
    ]
    if missing:
        raise NotACheckoutError(f"{root} is no checkout of Outrider: it has no folder {missing[0]}")
    own = root / ".venv" / "bin" / "python"
    return Checkout(root, python or (own if own.exists() else Path(sys.executable)))


HERE = Checkout(Path(__file__).resolve().parents[2], Path(sys.executable))
"""The checkout that this module is of."""


def main() -> None:
    """Replaces this process, which keeps its id and its standard streams: whoever started it sees one service."""
    python, root, *command = sys.argv[1:]
    os.environ["PYTHONPATH"] = root  # before a checkout that its Python may know of
    os.execv(python, list(tethered(*command, packages=Path(root), python=python)))


if __name__ == "__main__":
    main()
