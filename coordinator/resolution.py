"""Service discovery: worker addresses as they are configured, and what their DNS names resolve to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from outrider.core.protocol.address import parse_address

_DNS_SCHEME = "dns:///"


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
    try:
        return Endpoint(*parse_address(part.removeprefix(_DNS_SCHEME)))
    except ValueError as error:
        raise ValueError(f"{part!r} is no address; write host:port or dns:///name:port, several with commas") from error
