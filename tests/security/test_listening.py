"""Nothing listens beyond the machine in plain text unless somebody says so, and certificates come from good files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from draft_service.config import DraftConfig
from outrider.cli.certificates import SERVICES, make_certificates, tls_settings
from outrider.core.protocol.identity import COORDINATOR_NAME
from outrider.rpc import worker_client
from outrider.rpc.server import Server, Service
from outrider.rpc.tls_files import TlsError, TlsFiles
from outrider.rpc.transport import Transport
from outrider.rpc.worker_client import DRAFT_SERVICE, WorkerClient
from outrider.settings import BadSettingsError
from outrider.v1 import draft_pb2_grpc
from tests.security.authority import ANSWERS, CALLS, Authority
from tests.security.knock import answer, context

EVERYWHERE = ["0.0.0.0:0", "[::]:0", "10.0.0.1:0", "worker.internal:0", "localhost.internal:0"]
HERE = ["127.0.0.1:0", "127.0.0.9:0", "[::1]:0", "localhost:0"]


def problems(kind: type[CoordinatorConfig] | type[DraftConfig], **settings: Any) -> list[str]:
    values = {"model": "ngram"} if kind is DraftConfig else {"verify": "127.0.0.1:1"}
    try:
        kind.checked(**values, **settings)
    except BadSettingsError as error:
        return [problem.setting for problem in error.problems]
    return []


@pytest.mark.parametrize("kind", [CoordinatorConfig, DraftConfig])
@pytest.mark.parametrize("listen", EVERYWHERE)
def test_beyond_the_machine_needs_tls_or_a_word(kind: type[Any], listen: str, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    assert problems(kind, listen=listen) == ["listen"]
    assert problems(kind, listen=listen, insecure=True) == []
    assert problems(kind, listen=listen, **tls_settings(tmp_path, "draft")) == []


@pytest.mark.parametrize("listen", HERE)
def test_this_machine_may_listen_to_itself(listen: str) -> None:
    assert problems(CoordinatorConfig, listen=listen, http=listen) == []


def test_the_http_door_is_no_way_round() -> None:
    assert problems(CoordinatorConfig, http="0.0.0.0:8080") == ["http"]
    assert problems(CoordinatorConfig, http="0.0.0.0:8080", insecure=True) == []


def test_the_variable_says_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_INSECURE", "true")
    assert problems(DraftConfig, listen="0.0.0.0:0") == []


def test_what_belongs_together_is_wanted_together(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    tls = tls_settings(tmp_path, "draft")
    assert problems(DraftConfig, tls_cert=tls["tls_cert"]) == ["tls_key", "tls_ca"]
    assert problems(DraftConfig, tls_ca=tls["tls_ca"]) == ["tls_cert"]
    assert problems(CoordinatorConfig, tls_client_ca=tls["tls_ca"]) == ["tls_cert"]
    assert problems(CoordinatorConfig, tokens=str(tmp_path / "none")) == ["tokens"]
    assert problems(DraftConfig, **{**tls, "tls_key": str(tmp_path / "none.key")}) == ["tls_key"]


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    make_certificates(tmp_path / "new" / "folder")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new" / "folder").iterdir()}
    assert modes == {"ca.pem": 0o644} | {f"{name}.key": 0o600 for name in SERVICES} | {
        f"{name}.pem": 0o644 for name in SERVICES
    }
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o077 == 0


def test_files_that_cannot_be_used_are_told_of(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    first, second = ours.issue("a", ANSWERS), ours.issue("b", ANSWERS)
    (tmp_path / "empty").write_text("")
    for files in (
        TlsFiles(first.certificate, second.key, ours.file),
        TlsFiles(first.certificate, first.certificate, ours.file),
        TlsFiles(first.certificate, first.key, str(tmp_path / "empty")),
        TlsFiles(str(tmp_path / "none"), first.key, ours.file),
    ):
        with pytest.raises(TlsError) as caught:
            files.present()
        assert str(tmp_path) in str(caught.value)


async def test_clients_of_a_public_entry_may_need_certificates(tmp_path: Path) -> None:
    ours, clients = Authority(tmp_path / "ours"), Authority(tmp_path / "clients")
    identity = ours.issue(COORDINATOR_NAME, ANSWERS, trusting=clients.file)
    servicer = draft_pb2_grpc.DraftServiceServicer()
    service = Service(DRAFT_SERVICE, draft_pb2_grpc.add_DraftServiceServicer_to_server, servicer)
    server = Server(service, transport=Transport(identity))
    port = await server.start("127.0.0.1:0")
    assert await answer(port, context(TlsFiles(authority=ours.file))) == b""
    assert await answer(port, context(ours.issue("client", CALLS))) == b""
    assert await answer(port, context(clients.issue("client", CALLS, trusting=ours.file))) != b""
    await server.stop(None)


async def test_a_coordinator_goes_on_with_changed_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own have ended while a worker was away: no restart is needed when there are new ones."""
    monkeypatch.setattr(worker_client, "RENEW_SECONDS", 0.01)
    ours = Authority(tmp_path / "ours")
    servicer = draft_pb2_grpc.DraftServiceServicer()
    service = Service(DRAFT_SERVICE, draft_pb2_grpc.add_DraftServiceServicer_to_server, servicer)
    server = Server(service, transport=Transport(ours.issue("worker", ANSWERS)))
    port = await server.start("127.0.0.1:0")
    files = ours.issue(COORDINATOR_NAME, CALLS, days=-1)
    client = WorkerClient.connect(f"127.0.0.1:{port}", DRAFT_SERVICE, Transport(files, "worker"))
    watching = client.watch_model()
    assert await anext(watching) is None
    assert not client.is_connected
    ours.issue(COORDINATOR_NAME, CALLS)
    await client._until(lambda state: state.name == "READY")
    assert client.is_connected
    await watching.aclose()
    await client.close()
    await server.stop(None)
