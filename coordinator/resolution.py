"""Service discovery: worker addresses as they are configured, and what their DNS names resolve to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

_DNS_SCHEME = "dns:///"

_PORT_MAX = 65535


class Endpoint(NamedTuple):
    """One configured address: a single worker if `host` is an IP address, else all that the name resolves to."""

    host: str
    port: int

    @property
    def is_literal(self) -> bool:
        """Whether there is nothing to resolve."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        return address_of(self.host, self.port)


Resolve = Callable[[Endpoint], Awaitable[Sequence[str]]]
"""Returns the addresses (`host:port`, the host a number) of an endpoint. Raises OSError if it does not resolve."""


def parse_endpoints(text: str) -> list[Endpoint]:
    """Reads a list of `host:port` and `dns:///name:port`, separated by commas. Raises ValueError in words."""
    return [_parsed(part.strip()) for part in text.split(",") if part.strip()]


async def resolve(endpoint: Endpoint) -> Sequence[str]:
    """Asks the system's resolver, in a thread of its own. See `Resolve`."""
    found = await asyncio.get_running_loop().getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return sorted({address_of(str(address[0]), endpoint.port) for *_, address in found})


def address_of(host: str, port: int) -> str:
    """`host:port`, with brackets where the host is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parsed(part: str) -> Endpoint:
    host, _, port = part.removeprefix(_DNS_SCHEME).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or "/" in host:
        host = ""
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) <= _PORT_MAX:
        raise ValueError(f"{part!r} is no address; write host:port or dns:///name:port, several with commas")
    return Endpoint(host, int(port))
