"""Addresses to listen on: read, bound, and explained in words where that fails."""

from __future__ import annotations

import asyncio
import errno
import socket

from outrider.core.protocol.address import Address, parse_address
from outrider.core.protocol.errors import OutriderError


class ListenError(OutriderError):
    """A server cannot listen on the configured address."""


def listen_address(listen: str, flag: str = "--listen") -> Address:
    """Reads host:port. Raises ListenError, which tells to use `flag`."""
    try:
        return parse_address(listen, port_min=0)
    except ValueError as error:
        raise ListenError(f"cannot listen: {error}; use {flag} HOST:PORT") from error


async def bind(host: str, port: int, flag: str = "--listen") -> list[socket.socket]:
    """A socket bound to each address of `host` that this machine has; with port 0 all of them to one free port.

    Raises ListenError, which tells to use `flag`.
    """
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(f"the host {host!r} is not known; use {flag} HOST:PORT with a host or address") from error
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, (name, _, *scope) in addresses:
            found = socket.socket(family, kind, protocol)
            bound.append(found)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind((name, port, *scope))
            except OSError as error:
                refusal = _refusal(error, host, port, flag)
                if refusal is not None:
                    raise refusal from error
                bound.pop().close()  # an address that this machine lacks is no harm while the host has others
            else:
                port = found.getsockname()[1]
        if not bound:
            raise ListenError(f"this machine has no address of {host}; choose another one with {flag} HOST:PORT")
    except ListenError:
        for found in bound:
            found.close()
        raise
    return bound


def _refusal(error: OSError, host: str, port: int, flag: str) -> ListenError | None:
    if error.errno == errno.EADDRINUSE:
        return ListenError(f"port {port} of {host} is in use; stop what listens there or use {flag} with another port")
    if error.errno == errno.EACCES:
        return ListenError(f"port {port} needs privileges; use {flag} with a port above 1023")
    return None
