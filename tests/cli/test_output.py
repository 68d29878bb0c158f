"""Standard output that is full, closed, or read by nobody ends a command: in a sentence or in silence, never well."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from outrider.cli import run
from outrider.cli.board import Board
from outrider.cli.child import Phase
from outrider.cli.up_options import UpOptions
from outrider.output import EXIT_CLOSED_PIPE, OutputError
from tests.client.scripted import ROUNDS, ScriptedCoordinator, serving

FULL = Path("/dev/full")
"""A device that is always full. Linux has it."""

PRINTS = "from outrider.output import standard_output\nwith standard_output('tool'):\n    print('a word')"


def close() -> None:
    os.close(1)


def outrider(*arguments: str, prepare: Callable[[], None] | None = None, stdout: int) -> tuple[int, str]:
    command = [sys.executable, "-m", "outrider.cli", *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, preexec_fn=prepare, text=True)
    return done.returncode, done.stderr


@pytest.fixture
def full() -> Iterator[int]:
    if not FULL.exists():
        pytest.skip(f"there is no {FULL}")
    with FULL.open("w") as file:
        yield file.fileno()


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("flags", [["--json"], []])
async def test_text_that_cannot_be_written_is_an_error(flags: list[str], full: int) -> None:
    async with serving(ScriptedCoordinator()) as address:
        ended = await asyncio.to_thread(outrider, "generate", "x", *flags, "--address", address, stdout=full)
    assert ended == (1, "outrider: standard output cannot be written: No space left on device\n")


async def test_a_reader_that_leaves_ends_the_command_in_silence(unread: int) -> None:
    script = [*ROUNDS[:-1], ...]  # it would go on for ever
    async with serving(ScriptedCoordinator(script)) as address:
        ended = await asyncio.to_thread(outrider, "generate", "x", "--address", address, stdout=unread)
    assert ended == (EXIT_CLOSED_PIPE, "")


def test_output_that_is_closed_is_said_before_anything_begins() -> None:
    code, said = outrider("generate", "x", stdout=subprocess.DEVNULL, prepare=close)
    assert code == 1
    assert said.startswith("outrider: standard output is closed")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "code",
    [
        PRINTS,
        f"{PRINTS}\n    raise SystemExit(3)",
        f"{PRINTS}\n    import rich\n    rich.print('more')",
        f"{PRINTS}\n    print('x' * 100_000)",
    ],
)
def test_whatever_prints_and_however_it_ends(code: str, full: int) -> None:
    done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "tool: standard output cannot be written: No space left on device\n")


def test_standard_error_that_is_full_takes_nothing_from_the_text(full: int) -> None:
    code = "import sys\n" + PRINTS + "\n    print('not heard', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.returncode, done.stdout) == (0, "a word\n")


class Failing(Console):
    """Fails once, as standard output does."""

    def print(self, *objects: object, **settings: object) -> None:
        raise OutputError(OSError(28, "No space left on device"))


def test_who_tells_the_board_of_something_does_not_hear_of_its_output() -> None:
    calls: list[None] = []
    board = Board(Failing(), show_logs=True, on_failure=lambda: calls.append(None))
    board.phase("verify", Phase.STARTING)
    assert isinstance(board.failure, OutputError)
    assert calls == [None]
    board.log("verify", "line")
    board.notice("words")


async def test_services_that_are_up_stop_where_their_logs_cannot_be_written() -> None:
    options = UpOptions(target="nowhere", draft=None, port=0, draft_port=0, verify_port=0)
    with pytest.raises(OutputError, match="No space left"):
        await run.serve(options, Failing())
