"""TLS files: one end's certificate, key and authority in PEM, read again when they change."""

from __future__ import annotations

import logging
import ssl
import threading
from typing import NamedTuple

from outrider.core.protocol.errors import OutriderError
from outrider.machine.stamp import Stamp, stamp_of

PEM_BYTES_MAX = 1024 * 1024
"""Most bytes of one file: a bundle of all public authorities has a quarter of that."""

_log = logging.getLogger(__name__)


class TlsError(OutriderError):
    """A certificate, key or authority cannot be used."""


class Pem(NamedTuple):
    """What the files hold; None for a file that is not named."""

    certificate: bytes | None
    key: bytes | None
    authority: bytes | None
    version: int
    """How often they were read before."""


class TlsFiles:
    """Where they are, and what they held when they could last be used. Any thread may ask."""

    def __init__(self, certificate: str = "", key: str = "", authority: str = "") -> None:
        """Paths; an empty one names no file. `certificate`, with those that lead to its authority behind it, and `key`
        are shown to the other end, whose own certificate must be signed by `authority`."""
        self.certificate = certificate
        self.key = key
        self.authority = authority
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._pem: Pem | None = None

    def present(self) -> Pem:
        """The files as they are now, or, when they cannot be used, as they were before; that is logged once.

        Takes microseconds while they have not changed. Raises TlsError if they could never be used: one is missing, no
        PEM, or the key is not the certificate's.
        """
        with self._lock:
            stamp = self._present_stamp()
            if self._pem is None or stamp != self._stamp:
                self._stamp = stamp
                if self._pem is None:
                    self._pem = self._read(0)
                else:
                    self._pem = self._read_again(self._pem)
            return self._pem

    def apply(self, context: ssl.SSLContext) -> None:
        """Gives `context` the identity, and the authority to judge others by. Raises TlsError as `present` does."""
        at = f"{self.certificate} or {self.key}"
        try:
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
            at = self.authority
            if self.authority:
                context.load_verify_locations(self.authority)
        except ssl.SSLError as error:
            if "MISMATCH" in (error.reason or ""):
                raise TlsError(f"the key {self.key} is not that of {self.certificate}") from error
            raise TlsError(f"{at} is not what it should be, in PEM") from error
        except OSError as error:
            raise TlsError(f"cannot read {error.filename or at}: {error.strerror}") from error
        except ValueError as error:
            raise TlsError(
                f"the key {self.key} is encrypted; store it without a password, for its owner alone"
            ) from error

    @property
    def _paths(self) -> tuple[str, str, str]:
        return self.certificate, self.key, self.authority

    def _present_stamp(self) -> Stamp | None:
        """None if a file is not there."""
        try:
            return stamp_of(path for path in self._paths if path)
        except OSError:
            return None

    def _read_again(self, before: Pem) -> Pem:
        try:
            read = self._read(before.version + 1)
        except TlsError as error:
            _log.error("changed TLS files cannot be used, those before stay in use: %s", error)
            return before
        _log.info("TLS files read again")
        return read

    def _read(self, version: int) -> Pem:
        self.apply(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        certificate, key, authority = (_content(path) if path else None for path in self._paths)
        return Pem(certificate, key, authority, version)


def _no_password() -> str:
    raise ValueError


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(PEM_BYTES_MAX + 1)
    if len(content) > PEM_BYTES_MAX:
        raise TlsError(f"{path} has more than {PEM_BYTES_MAX} bytes")
    return content
