"""Transport: how connections are secured at both ends. The one place where ports and channels are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from outrider.rpc.tls_files import Pem, TlsError, TlsFiles


@dataclass(frozen=True, slots=True)
class Transport:
    """TLS by `files`; without them neither end proves who it is.

    Every port of a server and every channel is made here, so that no caller can leave the credentials out. Who listens
    shows its certificate, and if `files` name an authority wants one of that authority in return. Who connects does the
    same the other way round.
    """

    files: TlsFiles | None = None
    peer_name: str = ""
    """Who connects: the name that the other end's certificate must have; empty: the host that is connected to."""

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Has `server` listen on `address` (`host:port`). Returns the port.

        Raises RuntimeError if it cannot, and TlsError.
        """
        if self.files is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, _server_credentials(self.files))

    def connect(self, target: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel to `target` (`host:port`). It has no interceptors: on the asyncio stack they turn each write of a
        stream into a hop over a queue. Connects with the files as they are now. Raises TlsError."""
        if self.files is None:
            return grpc.aio.insecure_channel(target, options=options)
        pem = self.files.present()
        named = [("grpc.ssl_target_name_override", self.peer_name)] if self.peer_name else []
        credentials = grpc.ssl_channel_credentials(pem.authority, pem.key, pem.certificate)
        return grpc.aio.secure_channel(target, credentials, options=[*options, *named])

    def to_peer(self, name: str) -> Transport:
        """The same, to whoever has a certificate with that name."""
        return self if self.files is None else replace(self, peer_name=name)

    @property
    def version(self) -> int:
        """Grows when `connect` would use other files than before. Raises TlsError."""
        return 0 if self.files is None else self.files.present().version


PLAINTEXT = Transport()
"""For loopback and private networks."""


def _server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files: gRPC asks for them at each handshake, on a thread of its own."""
    used = files.present()

    def renewed() -> Any:
        nonlocal used
        present = files.present()
        if present.version == used.version:
            return None
        used = present
        return _configuration(present)

    return grpc.dynamic_ssl_server_credentials(_configuration(used), renewed, bool(files.authority))


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    if pem.key is None or pem.certificate is None:
        raise TlsError("who listens needs a certificate and its key")
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], root_certificates=pem.authority)
