"""Event ids: what each server-sent event says of the stream so far, for whoever continues it."""

from __future__ import annotations

import base64
import struct
from typing import Final, NamedTuple

from coordinator.openai.api_error import ApiError

HEADER: Final = "last-event-id"
"""Brings back the id of the last event that has come."""

_ANSWER: Final = struct.Struct(">BI16s")
_PROMPT: Final = struct.Struct(">Q8s")
_CHOICE: Final = struct.Struct(">III")
_FINISHED: Final = 1 << 31
_VERSION: Final = 2
_LAST: Final = 1 << 7


class ToldPrompt(NamedTuple):
    """What is answered."""

    seed: int = 0
    fingerprint: bytes = bytes(8)
    """Eight bytes of a digest of prompt, options and target: of another request the id is of no use. Zeros as long as
    nothing has come of the answer to this prompt."""

    @property
    def has_started(self) -> bool:
        """Whether the seed is known."""
        return any(self.fingerprint)


class ToldChoice(NamedTuple):
    """How far a choice has been told."""

    num_told: int = 0
    """Its tokens; of a response its events."""
    checksum: int = 0
    """CRC-32 of the ids of its tokens."""
    finished: bool = False
    num_reported: int = 0
    """Its tokens that reports of rounds have told."""


class EventId(NamedTuple):
    """Identity of one event. Its size does not grow with the answer."""

    created: int
    """The answer's own time, in seconds of the epoch."""
    request_id: str
    """The answer's own, as 32 hexadecimal digits: its events have one name, whoever sends them."""
    prompts: list[ToldPrompt]
    choices: list[ToldChoice]
    """As many of each prompt."""

    is_last: bool = False
    """Whether it is that of the token counts, which follow the choices."""

    def encode(self) -> bytes:
        """As the line that an event has."""
        marks = _VERSION | _LAST * self.is_last
        answer = _ANSWER.pack(marks, self.created, bytes.fromhex(self.request_id))
        prompts = [_PROMPT.pack(*each) for each in self.prompts]
        choices = [
            _CHOICE.pack(each.num_told | _FINISHED * each.finished, each.checksum, each.num_reported)
            for each in self.choices
        ]
        return base64.urlsafe_b64encode(b"".join([answer, *prompts, *choices])).rstrip(b"=")

    @classmethod
    def decode(cls, text: str, num_prompts: int, num_choices: int) -> EventId:
        """Raises ApiError for what is not the id of an answer to so many prompts, with so many choices in all."""
        wrong = ApiError(f"{HEADER} is no id of this request's events; leave it out to begin anew", param=HEADER)
        begin = _ANSWER.size + _PROMPT.size * num_prompts
        try:
            packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            marks, created, request_id = _ANSWER.unpack_from(packed)
            prompts = [ToldPrompt(*each) for each in _PROMPT.iter_unpack(packed[_ANSWER.size : begin])]
            told = [*_CHOICE.iter_unpack(packed[begin:])]
        except (ValueError, struct.error) as error:
            raise wrong from error
        if marks & ~_LAST != _VERSION or (len(prompts), len(told)) != (num_prompts, num_choices):
            raise wrong
        choices = [
            ToldChoice(marked & ~_FINISHED, checksum, bool(marked & _FINISHED), num_reported)
            for marked, checksum, num_reported in told
        ]
        return cls(created, request_id.hex(), prompts, choices, bool(marks & _LAST))


def needs_stream() -> ApiError:
    """The request has the id of an event, and asks for none."""
    return ApiError(f"{HEADER} needs stream: true", param=HEADER)
