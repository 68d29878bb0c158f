"""The protocol's version on the streams of sessions: a worker obeys no coordinator that speaks another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from outrider import PROTOCOL_VERSION
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.rpc.checksum import CHECKSUM_METADATA

_KEY: Final = "outrider-protocol"

VERSION_METADATA: Final = (_KEY, str(PROTOCOL_VERSION))
"""The metadata that says which version the coordinator speaks."""


def check_version(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raises ProtocolViolationError if who opened a stream with these metadata speaks another version.

    Streams made by hand say nothing and are taken. Coordinators before version 3 did not say it, either: they are known
    by their checksums.
    """
    said = dict(metadata)
    key, value = CHECKSUM_METADATA
    version = said.get(_KEY, "2" if said.get(key) == value else str(PROTOCOL_VERSION))
    if version != str(PROTOCOL_VERSION):
        raise ProtocolViolationError(
            f"the coordinator speaks another version of the protocol than this worker, which speaks version "
            f"{PROTOCOL_VERSION}; install the same release everywhere"
        )
