"""The token that a command shows: from a file, never from the command line, which others on the machine can read."""

from __future__ import annotations

from pathlib import Path

import typer

TOKEN_BYTES_MAX = 4096
"""Most bytes of a token file: ours have some fifty."""


def read_token(path: Path) -> str:
    """The token in the file. Raises typer.BadParameter."""
    try:
        with path.open(encoding="ascii") as file:
            token = file.read(TOKEN_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read a token from {path}", param_hint="'--token-file'") from error
    if not token or not token.isprintable() or " " in token:
        raise typer.BadParameter(f"{path} has no token", param_hint="'--token-file'")
    return token
