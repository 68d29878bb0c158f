"""Connections to workers: by TLS to those alone whose certificates bear the name of their service."""

from __future__ import annotations

from coordinator.config import CoordinatorConfig
from coordinator.pool import Connect
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import PLAINTEXT, Transport
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE, WorkerClient


def connect_by(config: CoordinatorConfig) -> Connect:
    """What connects to a worker. A worker's address does not matter: a name may stand for many of them."""
    transport = PLAINTEXT
    if config.tls_ca:
        transport = Transport(TlsFiles(config.tls_cert, config.tls_key, config.tls_ca))
    names = {VERIFY_SERVICE: config.tls_verify_name, DRAFT_SERVICE: config.tls_draft_name}
    return lambda address, service: WorkerClient.connect(address, service, transport.to_peer(names[service]))
