"""What schedulers of both kinds say and are told."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

KeyT = TypeVar("KeyT")
"""What the driver knows a session by; any value that can stand in a dict."""

ContentT = TypeVar("ContentT", covariant=True)


class Event(NamedTuple, Generic[KeyT, ContentT]):
    """Something to tell a session's other end."""

    key: KeyT
    content: ContentT
    """A message, the error that ended the session, or None: it has ended, and there is no more to tell."""


class WaitUntil(NamedTuple):
    """No step is due before that time, unless something happens."""

    time: float
