"""What gRPC is told by the environment. Imports nothing: gRPC reads its environment when it is imported."""

from __future__ import annotations

from typing import Final

GRPC_ENVIRONMENT: Final = {
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-PSK-AES256-CBC-SHA",
}
"""Variables and their values, to be set before `grpc` is imported, unless the user has set them.

The event engine reads and writes sockets on threads of its own, which then wake the one that serves asyncio; without it
that one thread does both. A message costs a fifth less processor time (docs/decisions/0012-messages.md).

No process that was forked uses gRPC before it runs another program. gRPC's fork handlers would only be in the way: in a
child of a process that was using gRPC they can wait for ever.

gRPC for Python has no setting for the least version of TLS. But the cipher suites that can be set are those of TLS 1.2
and before alone, and the one here needs a key that both ends share beforehand, which they do not: so nothing below
TLS 1.3 is agreed upon."""
