"""Channels to other services, and the gRPC options on which both ends must agree."""

from __future__ import annotations

import grpc.aio

from outrider.rpc.transport import PLAINTEXT, Transport

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Most bytes of one message in either direction: a line of half a million token ids, far beyond any context."""

KEEPALIVE_MS = 20_000
"""Silence after which an end asks whether the other still lives. A stream is quiet while a long prompt is read."""

KEEPALIVE_TIMEOUT_MS = 10_000
"""Silence after such a question at which the connection counts as lost."""

_PING_INTERVAL_MIN_MS = KEEPALIVE_MS // 2
"""A server takes pings at this distance without complaint. gRPC's own default of five minutes would close a connection
whose client asks every 20 seconds."""

_CONNECT_TIMEOUT_MS = 5_000
"""Time that one attempt to connect may take: a host that swallows packets must not hold up the next one for long."""

_RECONNECT_MS_MIN = 100
"""Pause after the first failed attempt to connect. Services that start together find one another without delay."""

_RECONNECT_MS_MAX = 2_000
"""Longest pause between attempts to connect."""

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


def open_channel(target: str, transport: Transport = PLAINTEXT) -> grpc.aio.Channel:
    """A channel to `target` (`host:port`). It connects at the first call and reconnects by itself. Raises TlsError."""
    return transport.connect(target, CHANNEL_OPTIONS)


class RenewableChannel:
    """Makes a channel, and another one when TLS files have changed: a channel shows what it was made with."""

    def __init__(self, target: str, transport: Transport) -> None:
        self._target = target
        self._transport = transport

    def open(self) -> grpc.aio.Channel:
        """See `open_channel`."""
        self._version = self._transport.version
        return open_channel(self._target, self._transport)

    def renewed(self) -> grpc.aio.Channel | None:
        """A channel by the files as they are now; None if they are those of the last one."""
        return None if self._transport.version == self._version else self.open()
