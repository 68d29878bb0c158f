"""What is asked of the fork server, as it crosses the socket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

ORDER_BYTES_MAX = 1 << 17
"""Longest order: arguments and environment of a test's process take some ten thousand bytes."""


class Order(NamedTuple):
    """One process."""

    arguments: Sequence[str]
    """What it finds as `sys.argv`; the first one is the module or the file that it runs."""
    folder: str
    environment: Mapping[str, str]
    new_session: bool

    def as_json(self) -> bytes:
        """Raises ValueError if it is too long."""
        message = json.dumps(self._asdict()).encode()
        if len(message) > ORDER_BYTES_MAX:
            raise ValueError(f"an order of {len(message)} bytes")
        return message

    @classmethod
    def from_json(cls, message: bytes) -> Self:
        """The order that this is."""
        return cls(**json.loads(message))
