"""Token file: who may ask a coordinator, by the hashes of their tokens, and how much each of them may use."""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from outrider.core.protocol.errors import OutriderError

TOKENS_MAX = 1024
"""Most tokens of a file. All of them are compared with each that is shown, which takes a tenth of a millisecond."""

FILE_BYTES_MAX = 1024 * 1024
"""Most bytes of a file: several times what so many tokens need. Reading it takes some milliseconds."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What names look like: they stand in logs and label metrics."""

_PREFIX = "outrider-"
"""By which a token that got into the wrong place is recognized."""
_SECRET_BYTES = 32

_Limit = Annotated[int, Field(ge=1, lt=2**31)]


class TokenFileError(OutriderError):
    """A token file cannot be read or written."""


class TokenEntry(BaseModel):
    """One token; None does not limit."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the token. A slow hash would add nothing: it has 256 random bits, which nobody guesses."""
    max_completions: _Limit | None = None
    """At a time."""
    tokens_per_minute: _Limit | None = None
    """Of prompts and answers together."""
    max_tokens: _Limit | None = None
    """Of one answer."""


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    tokens: Annotated[list[TokenEntry], Field(max_length=TOKENS_MAX)]


def new_token() -> str:
    """A token that nobody had before."""
    return _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def sha256_of(token: str) -> str:
    """What of a token stands in the file."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def read_tokens(path: Path) -> Sequence[TokenEntry]:
    """Raises TokenFileError, which tells nothing of what stands in the file."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise TokenFileError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > FILE_BYTES_MAX:
        raise TokenFileError(f"{path} has more than {FILE_BYTES_MAX} bytes")
    try:
        tokens = _File.model_validate_json(content).tokens
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise TokenFileError(f"{path} is no token file: {where}: {fault['msg']}; see docs/security.md") from None
    if len({each.name for each in tokens}) < len(tokens):
        raise TokenFileError(f"{path}: two tokens have one name")
    return tokens


def write_tokens(path: Path, tokens: Sequence[TokenEntry]) -> None:
    """In one move, for its owner alone. Raises TokenFileError."""
    content = _File(tokens=list(tokens)).model_dump_json(indent=1, exclude_none=True) + "\n"
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(name, path)
    except OSError as error:
        raise TokenFileError(f"cannot write {path}: {error.strerror}") from error
