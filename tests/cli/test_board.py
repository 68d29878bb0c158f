"""What `outrider up` and `outrider run` show of the services."""

from __future__ import annotations

import io

from rich.console import Console
from rich.text import Text

from outrider.cli.board import Board
from outrider.cli.child import LOG_TAIL_LINES, Phase


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, color_system="truecolor", width=100, _environ={})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return Text.from_ansi(console.file.getvalue()).plain


def test_logs_and_phases_are_prefixed_with_their_service() -> None:
    out = console()
    board = Board(out, show_logs=True)
    board.begin()
    board.phase("verify", Phase.STARTING)
    board.log("draft", "loading [model]")
    board.phase("verify", Phase.STARTING)
    board.phase("coordinator", Phase.ENDED)
    assert written(out).splitlines() == [
        "verify      │ starting",
        "draft       │ loading [model]",
        "coordinator │ ended",
    ]


def test_quiet_until_something_fails() -> None:
    out = console()
    board = Board(out, show_logs=False)
    for number in range(LOG_TAIL_LINES + 5):
        board.log("verify", f"line {number}")
    board.phase("verify", Phase.STOPPING)
    assert written(out) == ""
    board.show_tails()
    lines = written(out).splitlines()
    assert len(lines) == LOG_TAIL_LINES
    assert lines[-1] == f"verify      │ line {LOG_TAIL_LINES + 4}"


def test_warnings_are_shown_at_once() -> None:
    out = console()
    board = Board(out, show_logs=False)
    for line in ("20:44:47 info no warning in here", "20:44:48 warning not compiled reason=why", "a warning of others"):
        board.log("verify", line)
    assert written(out).splitlines() == ["verify      │ 20:44:48 warning not compiled reason=why"]


def test_a_terminal_sees_each_service_while_it_starts() -> None:
    out = console(terminal=True)
    board = Board(out, show_logs=False)
    board.begin()
    board.phase("verify", Phase.LOADING)
    board.log("verify", "loading model folder=target")
    board.phase("draft", Phase.READY)
    board.settle()
    shown = written(out)
    assert "loading model folder=target" in shown
    assert "✓ draft" in shown
    board.settle()
