"""Authorities that sign whatever a test needs: the good, the expired and the misused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outrider.rpc.tls_files import TlsFiles

ANSWERS = ExtendedKeyUsageOID.SERVER_AUTH
CALLS = ExtendedKeyUsageOID.CLIENT_AUTH


class Authority:
    """One that a test's services trust, or do not."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._draft("an authority", None, self._key, 1).sign(self._key, hashes.SHA256())
        self.file = str(folder / "ca.pem")
        Path(self.file).write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *uses: x509.ObjectIdentifier,
        file: str | None = None,
        days: int = 1,
        trusting: str | None = None,
    ) -> TlsFiles:
        """A certificate for `name` and this machine, that has ended if `days` are below 0, in files called `file`.

        Who has it trusts the authority in `trusting`, this one unless said.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost")])
        certificate = (
            self._draft(name, self._certificate.subject, key, days)
            .add_extension(names, False)
            .add_extension(x509.ExtendedKeyUsage(uses), False)
            .sign(self._key, hashes.SHA256())
        )
        at = self.folder / (file or name)
        at.with_suffix(".pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        at.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return TlsFiles(str(at.with_suffix(".pem")), str(at.with_suffix(".key")), trusting or self.file)

    def _draft(
        self, name: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=9))
            .not_valid_after(datetime.now(UTC) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        )
