"""Credentials: how a client knows its coordinator, and the coordinator its client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider.rpc.transport import PLAINTEXT, Transport


class Credentials(NamedTuple):
    """None of either, unless said."""

    transport: Transport = PLAINTEXT
    """`Transport(TlsFiles(authority="ca.pem"))` speaks TLS with a coordinator of that authority."""
    token: str = ""
    """As `outrider tokens add` has printed it."""

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What is sent with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


NO_CREDENTIALS = Credentials()
"""For a coordinator on this machine, or in a private network."""
