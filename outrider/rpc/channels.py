"""Channels to other services, and the gRPC options on which both ends must agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc.aio

from outrider.rpc.transport import PLAINTEXT, Transport

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Most bytes of one message in either direction: a line of half a million token ids, far beyond any context."""

KEEPALIVE_MS = 20_000
"""Silence after which an end asks whether the other still lives. A stream is quiet while a long prompt is read."""

KEEPALIVE_TIMEOUT_MS = 10_000
"""Silence after such a question at which the connection counts as lost."""

CLIENT_KEEPALIVE_MS = 1_000
"""The same at a client of coordinators, which can go on with an answer elsewhere."""

CLIENT_KEEPALIVE_TIMEOUT_MS = 2_000
"""So a coordinator that is frozen, or behind a network that swallows packets, is left after three seconds. gRPC answers
such questions on threads of its own, however busy the process is otherwise."""

_PING_INTERVAL_MIN_MS = CLIENT_KEEPALIVE_MS // 2
"""A server takes pings at this distance without complaint. gRPC's own default of five minutes would close a connection
whose client asks every second."""

_CONNECT_TIMEOUT_MS = 5_000
"""Time that one attempt to connect may take: a host that swallows packets must not hold up the next one for long."""

_RECONNECT_MS_MIN = 100
"""Pause after the first failed attempt to connect. Services that start together find one another without delay."""

_RECONNECT_MS_MAX = 2_000
"""Longest pause between attempts to connect."""

NO_LIMITS: Final[Mapping[str, int]] = MappingProxyType({})
"""No method has a bound of its own: MESSAGE_BYTES_MAX is that of all."""

_TRANSPORT_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # The timeout above is the kernel's, for peers that are gone; a process that is stuck has a kernel that answers.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS = (
    *_TRANSPORT_OPTIONS,
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS_MIN),
    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
    # A proxy set for web traffic would otherwise be asked for the services on the user's own machine.
    ("grpc.enable_http_proxy", 0),
)
"""Options of every channel."""

SERVER_OPTIONS = (
    *_TRANSPORT_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_MIN_MS),
    # With it on, a second server on the same port would silently take half of the connections.
    ("grpc.so_reuseport", 0),
)
"""Options of every server."""


def open_client_channel(target: str, transport: Transport = PLAINTEXT) -> grpc.aio.Channel:
    """A channel of a client to the coordinator at `target` (`host:port`), which soon tells if that is gone."""
    impatient = {
        "grpc.keepalive_time_ms": CLIENT_KEEPALIVE_MS,
        "grpc.keepalive_timeout_ms": CLIENT_KEEPALIVE_TIMEOUT_MS,
        "grpc.http2.ping_timeout_ms": CLIENT_KEEPALIVE_TIMEOUT_MS,
    }
    return transport.connect(target, [*(dict(CHANNEL_OPTIONS) | impatient).items()])


def open_channel(
    target: str, transport: Transport = PLAINTEXT, response_bytes_max: Mapping[str, int] = NO_LIMITS
) -> grpc.aio.Channel:
    """A channel to `target` (`host:port`). It connects at the first call and reconnects by itself. Raises TlsError.

    `response_bytes_max` bounds the answers of methods by their paths: gRPC refuses larger ones unread.
    """
    methods = [
        {"name": [{"service": service, "method": method}], "maxResponseMessageBytes": num_bytes}
        for path, num_bytes in response_bytes_max.items()
        for _, service, method in (path.split("/"),)
    ]
    limits = (("grpc.service_config", json.dumps({"methodConfig": methods})),) if methods else ()
    return transport.connect(target, (*CHANNEL_OPTIONS, *limits))


class RenewableChannel:
    """Makes a channel, and another one when TLS files have changed: a channel shows what it was made with."""

    def __init__(self, target: str, transport: Transport, response_bytes_max: Mapping[str, int] = NO_LIMITS) -> None:
        self._target = target
        self._transport = transport
        self._response_bytes_max = response_bytes_max

    def open(self) -> grpc.aio.Channel:
        """See `open_channel`."""
        self._version = self._transport.version
        return open_channel(self._target, self._transport, self._response_bytes_max)

    def renewed(self) -> grpc.aio.Channel | None:
        """A channel by the files as they are now; None if they are those of the last one."""
        return None if self._transport.version == self._version else self.open()
