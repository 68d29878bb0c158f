"""Which of gRPC's experiments are switched off. Imports nothing: gRPC reads its environment when it is imported."""

from __future__ import annotations

from typing import Final

GRPC_EXPERIMENTS: Final = "GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener"
"""A variable of the environment and its value, to be set before `grpc` is imported.

The event engine reads and writes sockets on threads of its own, which then wake the one that serves asyncio; without it
that one thread does both. A message costs a fifth less processor time (docs/decisions/0012-messages.md)."""
