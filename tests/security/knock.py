"""Knocking: one connection to a port, by whatever means, and whether it is let in."""

from __future__ import annotations

import asyncio
import ssl

from outrider.rpc.tls_files import TlsFiles

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a client begins to speak HTTP/2, with empty settings."""


def context(files: TlsFiles, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client's end, at most of that version."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.maximum_version = version
    made.set_alpn_protocols(["h2"])
    files.apply(made)
    return made


async def answer(port: int, tls: ssl.SSLContext | None, sent: bytes = PREFACE) -> bytes:
    """The first bytes of what is answered; none if the connection is refused at any point."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    except OSError:
        return b""
    try:
        writer.write(sent)
        return await reader.read(64)
    except OSError:
        return b""
    finally:
        writer.transport.abort()


async def serial(port: int, tls: ssl.SSLContext) -> str:
    """The serial number of the certificate that a port shows."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost")
    shown = writer.get_extra_info("peercert")
    writer.transport.abort()
    return shown["serialNumber"]
