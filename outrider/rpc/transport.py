"""Transport: how connections are secured at both ends. The one place where ports and channels are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio


@dataclass(frozen=True, slots=True)
class Transport:
    """Plaintext: neither end proves who it is. Credentials, once there are some, are fields of this value.

    Every port of a server and every channel is made here, so that no caller can leave the credentials out.
    """

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Has `server` listen on `address` (`host:port`). Returns the port. Raises RuntimeError if it cannot."""
        return server.add_insecure_port(address)

    def connect(self, target: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel to `target` (`host:port`). It has no interceptors: on the asyncio stack they turn each write of a
        stream into a hop over a queue."""
        return grpc.aio.insecure_channel(target, options=options)


PLAINTEXT = Transport()
"""For loopback and private networks."""
