"""Audit: one record of each request, who made it and how it ended."""

from __future__ import annotations

import structlog

from coordinator.caller import Caller
from outrider.core.protocol.printable import printable

OK = "OK"
CANCELLED = "CANCELLED"
"""How a request may end, beside by a gRPC or HTTP status."""

_log = structlog.get_logger("outrider.audit")


def record(caller: Caller, method: str, peer: str, outcome: str, seconds: float) -> None:
    """`method` is a gRPC method or an HTTP method and raw path, `peer` an address; both may be anybody's words."""
    told = {"token": caller.name, "method": printable(method), "peer": printable(peer), "outcome": outcome}
    _log.info("request", **told, seconds=round(seconds, 3))
