"""Certificates to try TLS with: an authority that signs once and is thrown away, and one signed for each service."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import typer

from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.identity import COORDINATOR_NAME, DRAFTER_NAME, VERIFIER_NAME
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import PLAINTEXT, Transport

AUTHORITY = "ca.pem"
"""The file of the authority."""

SERVICES: Final = {"coordinator": COORDINATOR_NAME, "verify": VERIFIER_NAME, "draft": DRAFTER_NAME}
"""By the files `NAME.pem` and `NAME.key`: the name that the certificate bears."""

DAYS_DEFAULT = 7
DAYS_MAX = 90
"""Longest validity that may be asked for: what lives longer should come of an authority that can revoke."""

_HOSTS = ("localhost", "127.0.0.1", "::1")
_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII | re.IGNORECASE)
_SLACK = timedelta(minutes=5)
"""How far clocks may be apart."""


class CertificatesError(OutriderError):
    """Certificates cannot be made, or are not where they should be."""


def make_certificates(folder: Path, days: int = DAYS_DEFAULT, hosts: Sequence[str] = ()) -> None:
    """Writes the authority's certificate, and a certificate and a key for each service, over those that are there.

    The coordinator's is for clients too, who reach it at this machine or one of `hosts`. Workers have certificates with
    which they can answer and not call. Keys are their owner's alone; the authority's own is not kept, so nobody can
    make further certificates. Raises CertificatesError.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ModuleNotFoundError as error:
        raise CertificatesError("making certificates needs cryptography; pip install 'outrider[certs]'") from error

    now = datetime.now(UTC)

    def draft(name: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SLACK)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
        )

    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = draft("outrider development authority", None, authority_key).sign(authority_key, hashes.SHA256())
    files = {AUTHORITY: _pem(authority)}
    for service, name in SERVICES.items():
        is_public = service == "coordinator"
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if is_public else [])]
        names = [x509.DNSName(name), *(_general_name(host) for host in (*_HOSTS, *(hosts if is_public else ())))]
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            draft(name, authority.subject, key)
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.ExtendedKeyUsage(uses), False)
            .sign(authority_key, hashes.SHA256())
        )
        files |= {f"{service}.key": _pem(key), f"{service}.pem": _pem(certificate)}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            _write(folder / name, content, 0o644 if name.endswith(".pem") else 0o600)
    except OSError as error:
        raise CertificatesError(f"cannot write {error.filename or folder}: {error.strerror}") from error


def tls_settings(folder: Path | None, service: str) -> dict[str, str]:
    """What a service is told to use its certificate of `folder`; nothing without a folder."""
    if folder is None:
        return {}
    files = _files(folder, service)
    return {"tls_cert": files.certificate, "tls_key": files.key, "tls_ca": files.authority}


def transport_to(folder: Path | None, service: str) -> Transport:
    """The way to a service that was told so, with the coordinator's identity."""
    return PLAINTEXT if folder is None else Transport(_files(folder, "coordinator"), SERVICES[service])


def _files(folder: Path, service: str) -> TlsFiles:
    return TlsFiles(str(folder / f"{service}.pem"), str(folder / f"{service}.key"), str(folder / AUTHORITY))


def _general_name(host: str) -> Any:
    from cryptography import x509

    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if not _HOST_NAME.fullmatch(host):
        raise typer.BadParameter(
            f"{host!r} is no name of a host; write letters, digits and dashes with dots between them, and others than "
            "ASCII's as xn--...",
            param_hint="'--host'",
        )
    return x509.DNSName(host)


def _pem(made: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if hasattr(made, "private_bytes"):
        return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM)


def _write(path: Path, content: bytes, mode: int) -> None:
    """In one move."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise
