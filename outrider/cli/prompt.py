"""The prompt as the command line is given it: a text, `-` for standard input, or token ids."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import typer

from outrider.core.protocol.options import Prompt
from outrider.core.protocol.validation import PROMPT_BYTES_MAX, UINT32_MAX

STANDARD_INPUT = "-"
"""Stands for the prompt that comes on standard input."""

_PROMPT = "PROMPT"
_TOKEN_IDS = "'--token-ids'"
_PREDICTION = "'--prediction'"


def parse_prompt(text: str | None, token_ids: str | None) -> Prompt:
    """The one of both that is given; standard input is read to its end, as it is. Raises typer.BadParameter."""
    if text is None and token_ids is not None:
        return _parsed(token_ids)
    if text is None or token_ids is not None:
        raise typer.BadParameter("give either PROMPT or --token-ids")
    prompt = _read() if text == STANDARD_INPUT else text
    if not prompt:
        raise typer.BadParameter("it is empty", param_hint=_PROMPT)
    if len(prompt.encode(errors="surrogatepass")) > PROMPT_BYTES_MAX:
        raise typer.BadParameter(f"it has more than {PROMPT_BYTES_MAX} bytes", param_hint=_PROMPT)
    return prompt


def parse_prediction(path: Path) -> str:
    """What a file says that the text will be, as it is. Raises typer.BadParameter."""
    try:
        with path.open("rb") as file:
            return _text(file, str(path), _PREDICTION)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}", param_hint=_PREDICTION) from error


def _read() -> str:
    if sys.stdin is None:
        raise typer.BadParameter("standard input is closed", param_hint=_PROMPT)
    return _text(sys.stdin.buffer, "standard input", _PROMPT)


def _text(source: BinaryIO, name: str, flag: str) -> str:
    """Up to one byte more than the server takes."""
    content = source.read(PROMPT_BYTES_MAX + 1)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{name} is no text in UTF-8", param_hint=flag) from error


def _parsed(text: str) -> list[int]:
    try:
        token_ids = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of token ids; write --token-ids 1,2,3", param_hint=_TOKEN_IDS
        ) from error
    if any(not 0 <= token_id <= UINT32_MAX for token_id in token_ids):
        raise typer.BadParameter(f"a token id is not between 0 and {UINT32_MAX}", param_hint=_TOKEN_IDS)
    return token_ids
