"""`outrider tokens`: who may ask a coordinator, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.cli.commands import Commands
from outrider.token_file import TokenEntry, TokenFileError, new_token, read_tokens, sha256_of, write_tokens

app = typer.Typer(help="Say who may ask a coordinator: tokens for its --tokens.", no_args_is_help=True, cls=Commands)

_FILE: Any = {"help": "The coordinator's file of tokens.", "metavar": "FILE", "dir_okay": False}
_Name = Annotated[str, typer.Argument(help="Who it is; logs and metrics bear the name.", metavar="NAME")]
_DEFAULT_FILE = Path("tokens.json")


@app.command()
def add(
    name: _Name,
    file: Annotated[Path, typer.Option("--file", **_FILE)] = _DEFAULT_FILE,
    max_completions: Annotated[int | None, typer.Option(help="Most completions at a time.", min=1)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Most tokens of prompts and answers in a minute.", min=1)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of one answer.", min=1)] = None,
) -> None:
    """Make a token for NAME and print it, once: the file has no more than its hash.

    Whoever is in the file already gets a new token, and the old one ends. A running coordinator notices.
    """
    token = new_token()
    try:
        entry = TokenEntry(
            name=name,
            sha256=sha256_of(token),
            max_completions=max_completions,
            tokens_per_minute=tokens_per_minute,
            max_tokens=max_tokens,
        )
    except ValueError as error:
        raise typer.BadParameter(
            f"{name!r} is no name; use at most 64 letters, digits, dots, dashes and underscores", param_hint="NAME"
        ) from error
    write_tokens(file, [*(each for each in _present(file) if each.name != name), entry])
    print(token)


@app.command()
def remove(name: _Name, file: Annotated[Path, typer.Option("--file", exists=True, **_FILE)] = _DEFAULT_FILE) -> None:
    """End the token of NAME. A running coordinator refuses it from then on."""
    present = read_tokens(file)
    rest = [each for each in present if each.name != name]
    if len(rest) == len(present):
        raise TokenFileError(f"{file} has no token of {name!r}")
    write_tokens(file, rest)


def _present(file: Path) -> Sequence[TokenEntry]:
    return read_tokens(file) if file.exists() else ()
