"""Standard output that says when it fails: a full disk or a reader that has gone must not pass for success."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

EXIT_ERROR = 1
EXIT_CLOSED_PIPE = 128 + signal.SIGPIPE
"""As a shell reports a command that wrote to a pipe without a reader."""


class OutputError(Exception):
    """Standard output cannot be written. Raised once: what is written afterwards is dropped in silence."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror}")
        self.is_closed_pipe = error.errno == errno.EPIPE
        """Whether nobody reads it any more, which is how `| head` ends a command."""


class _Output(io.FileIO):
    """A stream's file, which drops what is written once it has failed."""

    has_failed = False

    def write(self, data: Any, /) -> int | None:
        if self.has_failed:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.has_failed = True
            return self.fail(error, len(data))

    def fail(self, error: OSError, num_bytes: int) -> int:
        """The first failure, at that many bytes."""
        raise OutputError(error) from error


class _ErrorOutput(_Output):
    """Standard error: where it fails, there is nobody to tell."""

    def fail(self, error: OSError, num_bytes: int) -> int:
        return num_bytes


@contextmanager
def standard_output(program: str) -> Iterator[None]:
    """While it is open, a `print` or a console that cannot write to standard output raises OutputError.

    Where that leaves the context, the process exits: in silence with EXIT_CLOSED_PIPE if the reader has gone, else with
    a sentence on standard error and EXIT_ERROR. What the output's encoding lacks is written as "?": a model may write
    anything.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    else:
        sys.stderr = _writing(_ErrorOutput(2, "w", closefd=False), sys.stderr, line_buffering=True)
    if sys.stdout is None:
        sys.exit(f"{program}: standard output is closed; redirect it to /dev/null to run without")
    sys.stdout = _writing(_Output(1, "w", closefd=False), sys.stdout, line_buffering=sys.stdout.isatty())
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputError as error:
        if error.is_closed_pipe:
            sys.exit(EXIT_CLOSED_PIPE)
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)


def _writing(file: _Output, like: TextIO, *, line_buffering: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(file), encoding=like.encoding, errors="replace", line_buffering=line_buffering
    )
