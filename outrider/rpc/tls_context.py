"""TLS by Python's ssl, for what is not gRPC: the least version, files that are read again, refusals that are told."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable

from outrider.core.protocol.printable import printable
from outrider.rpc.tls_files import TlsError, TlsFiles

HANDSHAKE = "handshake"
"""Why a connection is refused, as metrics name it."""

_log = logging.getLogger(__name__)


def server_context(files: TlsFiles, on_refused: Callable[[str], None]) -> ssl.SSLContext:
    """TLS 1.3 by the files as they are at each handshake; if they name an authority, clients need its certificates.

    A handshake that fails is logged, and `on_refused` hears of it. Raises TlsError.
    """

    class Connection(ssl.SSLObject):
        """Python calls it for each step of a handshake, and tells nobody else how that ends."""

        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                _log.warning("refused a connection: %s", printable(error.reason or "no TLS"))
                on_refused(HANDSHAKE)
                raise

    def fresh() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if files.authority:
            context.verify_mode = ssl.CERT_REQUIRED
        files.apply(context)
        return context

    version, present = files.present().version, fresh()

    def renew(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        nonlocal version, present
        if files.present().version != version:
            version = files.present().version
            with contextlib.suppress(TlsError):  # they have changed once more: the next handshake sees it
                present = fresh()
        connection.context = present

    first = fresh()
    first.sslobject_class = Connection
    first.sni_callback = renew
    return first
