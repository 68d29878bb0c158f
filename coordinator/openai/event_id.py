"""Event ids: what each server-sent event says of the stream so far, for whoever continues it."""

from __future__ import annotations

import base64
import struct
from typing import Final, NamedTuple

from coordinator.openai.api_error import ApiError

HEADER: Final = "last-event-id"
"""Brings back the id of the last event that has come."""

_ANSWER: Final = struct.Struct(">BIQ16s8s")
_CHOICE: Final = struct.Struct(">II")
_FINISHED: Final = 1 << 31
_VERSION: Final = 1
_LAST: Final = 1 << 7


class ToldChoice(NamedTuple):
    """How far a choice has been told."""

    num_tokens: int = 0
    checksum: int = 0
    """CRC-32 of their ids."""
    finished: bool = False


class EventId(NamedTuple):
    """Identity of one event. Its size does not grow with the answer."""

    created: int
    """The answer's own time, in seconds of the epoch."""
    seed: int
    request_id: str
    """The answer's own, as 32 hexadecimal digits: its events have one name, whoever sends them."""
    fingerprint: bytes
    """Eight bytes of a digest of prompt, options and target: of another request the id is of no use."""
    choices: list[ToldChoice]

    is_last: bool = False
    """Whether it is that of the token counts, which follow the choices."""

    def encode(self) -> bytes:
        """As the line that an event has."""
        marks = _VERSION | _LAST * self.is_last
        answer = _ANSWER.pack(marks, self.created, self.seed, bytes.fromhex(self.request_id), self.fingerprint)
        choices = [_CHOICE.pack(each.num_tokens | _FINISHED * each.finished, each.checksum) for each in self.choices]
        return base64.urlsafe_b64encode(b"".join([answer, *choices])).rstrip(b"=")

    @classmethod
    def decode(cls, text: str, num_choices: int) -> EventId:
        """Raises ApiError for what is not the id of an answer with so many choices."""
        wrong = ApiError(f"{HEADER} is no id of this request's events; leave it out to begin anew", param=HEADER)
        try:
            packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            marks, created, seed, request_id, fingerprint = _ANSWER.unpack_from(packed)
            told = [*_CHOICE.iter_unpack(packed[_ANSWER.size :])]
        except (ValueError, struct.error) as error:
            raise wrong from error
        if marks & ~_LAST != _VERSION or len(told) != num_choices:
            raise wrong
        choices = [ToldChoice(marked & ~_FINISHED, checksum, bool(marked & _FINISHED)) for marked, checksum in told]
        return cls(created, seed, request_id.hex(), fingerprint, choices, bool(marks & _LAST))
