"""Ports: where the services of one command listen on this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from outrider.core.protocol.errors import OutriderError

HOST = "127.0.0.1"
"""Where everything listens: it stays on this machine."""


class PortTakenError(OutriderError):
    """A service cannot listen where it should."""


def free_addresses(wanted: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    """For each flag the addresses of its services: the first at the port that it asks for, the rest at free ones.

    `wanted` has port and number of services; port 0 is a free one too. Raises PortTakenError. A service would say the
    same of its own port, but a stranger's service that is ready there would be taken for ours.
    """
    addresses: dict[str, list[str]] = {}
    with contextlib.ExitStack() as held:
        for flag, (first, count) in wanted.items():
            ports: list[int] = []
            for port in [first, *([0] * (count - 1))][:count]:
                probe = held.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                    probe.listen()
                except OSError as error:
                    raise PortTakenError(
                        f"cannot listen on {HOST}:{port} ({error.strerror}); stop what listens there or choose another "
                        f"port with {flag} (0 takes a free one)"
                    ) from error
                ports.append(probe.getsockname()[1])
            addresses[flag] = [f"{HOST}:{port}" for port in ports]
    return addresses
