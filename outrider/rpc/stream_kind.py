"""What a stream of sessions carries: Verify and Draft streams differ in their messages alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from outrider.core.protocol.messages import (
    Commitment,
    DraftOpen,
    DraftWindow,
    Opened,
    Verdict,
    VerifyCommand,
    VerifyFinished,
    VerifyOpen,
)
from outrider.rpc import wire
from outrider.v1 import draft_pb2, verify_pb2

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")

BATCH_BYTES_MAX = 64 * 1024
"""Size from which a message takes up no more commands or events. It is about that of the largest event, a verdict of
DRAFT_TOKENS_MAX accepted tokens and one more, each with LOGPROBS_MAX alternatives."""

EVENTS_BYTES_MAX = 2 * BATCH_BYTES_MAX
"""Largest message of events: the last event that it takes up may reach beyond BATCH_BYTES_MAX."""


@dataclass(frozen=True, slots=True)
class StreamKind(Generic[CommandT, EventT]):
    """The messages of one kind of stream, and the core's values that stand in them."""

    path: str
    """`/package.Service/Method`."""
    opening_type: type[CommandT]
    """The command that a session begins with."""
    commands_type: type[Message]
    """A message with `commands` of sessions, and the numbers of those that are `closed`."""
    events_type: type[Message]
    """A message with `events` of sessions, those that `failed`, and the numbers of those that have `ended`."""
    encode_command: Callable[..., Any]
    """Takes a command, and a message to put it into; without one it makes one."""
    decode_command: Callable[[Any], CommandT]
    encode_event: Callable[..., Any]
    """The same of an event."""
    decode_event: Callable[[Any], EventT]


VERIFY: Final[StreamKind[VerifyCommand, Opened | Verdict | VerifyFinished]] = StreamKind(
    "/outrider.v1.VerifyService/Verify",
    VerifyOpen,
    verify_pb2.VerifyCommands,
    verify_pb2.VerifyEvents,
    wire.encode_verify_command,
    wire.decode_verify_command,
    wire.encode_verify_event,
    wire.decode_verify_event,
)

DRAFT: Final[StreamKind[DraftOpen | Commitment, Opened | DraftWindow]] = StreamKind(
    "/outrider.v1.DraftService/Draft",
    DraftOpen,
    draft_pb2.DraftCommands,
    draft_pb2.DraftEvents,
    wire.encode_draft_command,
    wire.decode_draft_command,
    wire.encode_draft_event,
    wire.decode_draft_event,
)
