"""Addresses as people write them: `host:port`."""

from __future__ import annotations

from typing import NamedTuple

PORT_MAX = 65535
"""Ports are 16 bits wide."""


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    """A name, or an IP address without brackets."""
    port: int


def parse_address(text: str, *, port_min: int = 1) -> Address:
    """Reads `host:port`, an IPv6 host in brackets. `port_min` is 0 where a free port may be asked for.

    gRPC itself would read a missing port as 443, and one beyond the range modulo 65536. Raises ValueError, in words.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or "/" in host:
        host = ""
    if len(host.split()) != 1 or not (port.isascii() and port.isdecimal()):
        raise ValueError(f"{text!r} is no address; write host:port, such as 127.0.0.1:50050")
    if not port_min <= int(port) <= PORT_MAX:
        raise ValueError(f"the port of {text!r} is not between {port_min} and {PORT_MAX}")
    return Address(host, int(port))
