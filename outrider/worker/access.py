"""Access to a worker: with TLS a coordinator's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import grpc.aio

from outrider.rpc.peer_names import PeerNames
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.telemetry.metrics import Instruments
from outrider.worker.config import WorkerConfig


class Access(NamedTuple):
    """What a worker's server is made with."""

    transport: Transport
    guards: Sequence[grpc.aio.ServerInterceptor]


def access(config: WorkerConfig, instruments: Instruments) -> Access:
    """By the settings; each refusal is counted."""
    if not config.tls_cert:
        return Access(PLAINTEXT, ())
    guard = PeerNames(config.tls_peers.split(","), instruments.count_refusal)
    return Access(Transport(TlsFiles(config.tls_cert, config.tls_key, config.tls_ca)), (guard,))
