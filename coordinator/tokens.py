"""Tokens: who a bearer token belongs to, by a file that is read again when it changes."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from coordinator.caller import Caller
from outrider.core.protocol.errors import UnauthenticatedError
from outrider.machine.stamp import Stamp, stamp_of
from outrider.token_file import TokenEntry, TokenFileError, read_tokens, sha256_of

LOOK_SECONDS = 1.0
"""A change of the file counts from so much later on at most: it is looked at when a token is shown, not oftener."""

TOKEN_CHARACTERS_MAX = 512
"""Longest token that is looked up: ours have some fifty characters."""

_log = structlog.get_logger()


class Tokens:
    """The tokens of one file."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        """`now` is a clock in seconds. Raises TokenFileError."""
        self._path = path
        self._now = now
        self._stamp = self._present_stamp()
        self._looked_at = now()
        self._entries: Sequence[TokenEntry] = read_tokens(path)

    def caller(self, authorization: str) -> Caller:
        """Who sent this header, `Bearer TOKEN`. Raises UnauthenticatedError, with one text for whatever is wrong.

        How long it takes tells nothing of the tokens that there are.
        """
        self._look()
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(token := token.strip()) <= TOKEN_CHARACTERS_MAX:
            raise UnauthenticatedError("no token, or an unknown one; send the header authorization: Bearer TOKEN")
        shown = sha256_of(token)
        found: TokenEntry | None = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, shown):
                found = entry
        if found is None:
            raise UnauthenticatedError("no token, or an unknown one; send the header authorization: Bearer TOKEN")
        return Caller(found)

    def _look(self) -> None:
        now = self._now()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        stamp = self._present_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries = read_tokens(self._path)
            _log.info("tokens read again", count=len(self._entries))
        except TokenFileError as error:
            _log.error("changed tokens cannot be used, those before stay in use", reason=str(error))

    def _present_stamp(self) -> Stamp | None:
        """None if the file is not there."""
        try:
            return stamp_of([str(self._path)])
        except OSError:
            return None
