"""What the services do while they are measured, for whoever waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

from outrider.cli.board import Board
from outrider.cli.child import ServiceDiedError
from outrider.core.protocol.errors import OutriderError


@contextlib.contextmanager
def watched(console: Console) -> Iterator[Board]:
    """A board of their progress. Where a measurement fails it shows their last lines; a service that died has shown its
    own."""
    board = Board(console, show_logs=False)
    board.begin()
    try:
        yield board
    except ServiceDiedError:
        raise
    except OutriderError:
        board.show_tails()
        raise
    finally:
        board.settle()
