"""Streams of sessions by hand: messages with one session's commands or events, and what such messages say."""

from __future__ import annotations

from typing import Any

from outrider.rpc.session_failure import decode_failure
from outrider.rpc.stream_kind import StreamKind
from outrider.rpc.streams import EOF


def commands(kind: StreamKind[Any, Any], *values: Any, session: int = 0) -> Any:
    """A message with those commands of a session."""
    return kind.commands_type(commands=_numbered(map(kind.encode_command, values), session))


def events(kind: StreamKind[Any, Any], *values: Any, session: int = 0) -> Any:
    """A message with those events of a session."""
    return kind.events_type(events=_numbered(map(kind.encode_event, values), session))


def told(kind: StreamKind[Any, Any], message: Any, session: int = 0) -> list[Any]:
    """The events of a session in a message, and at their end what it failed with, if it did."""
    found = [kind.decode_event(event) for event in message.events if event.session == session]
    return found + [decode_failure(failed) for failed in message.failed if failed.session == session]


def _numbered(messages: Any, session: int) -> list[Any]:
    found = list(messages)
    for message in found:
        message.session = session
    return found


async def rest(kind: StreamKind[Any, Any], call: Any, session: int = 0) -> list[Any]:
    """Everything that a stream says of a session to its end. Raises what the session failed with."""
    found: list[Any] = []
    while (message := await call.read()) is not EOF:
        found += told(kind, message, session)
    if found and isinstance(found[-1], Exception):
        raise found[-1]
    return found
