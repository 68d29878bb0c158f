"""A worker's port lets in a coordinator and nobody else; each refusal stands in its log once."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from outrider.core.protocol.identity import COORDINATOR_NAME, DRAFTER_NAME, VERIFIER_NAME
from outrider.rpc.channels import open_channel
from outrider.rpc.tls_files import TlsFiles
from outrider.rpc.transport import Transport
from outrider.v1 import common_pb2, draft_pb2_grpc
from tests.security.authority import ANSWERS, CALLS, Authority
from tests.security.knock import answer, context, serial

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("forked")]


@dataclass
class Worker:
    """A draft worker without a model, in a process of its own."""

    port: int
    ours: Authority
    strangers: Authority
    log: asyncio.Queue[str]

    async def told(self) -> str:
        """What it logs next."""
        return await self.log.get()

    async def model(self, files: TlsFiles, name: str = DRAFTER_NAME) -> str:
        """What it tells a caller with that identity of its model. Raises AioRpcError."""
        async with open_channel(f"127.0.0.1:{self.port}", Transport(files, name)) as channel:
            stub = draft_pb2_grpc.DraftServiceStub(channel)
            return (await stub.GetModelInfo(common_pb2.GetModelInfoRequest())).model.name


@asynccontextmanager
async def drafter(identity: TlsFiles) -> AsyncIterator[tuple[int, asyncio.Queue[str]]]:
    flags = [f"--tls-cert={identity.certificate}", f"--tls-key={identity.key}", f"--tls-ca={identity.authority}"]
    command = [sys.executable, "-m", "draft_service", "--model=ngram", "--listen=127.0.0.1:0", *flags]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    log: asyncio.Queue[str] = asyncio.Queue()
    try:
        port = 0
        while '"ready"' not in (line := (await process.stderr.readline()).decode()):
            assert line, "the worker ended"
            port = json.loads(line).get("port", port)

        async def follow() -> None:
            async for each in process.stderr or ():
                log.put_nowait(each.decode())

        following = asyncio.create_task(follow())
        yield port, log
        following.cancel()
    finally:
        process.kill()
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    folder = tmp_path_factory.mktemp("pki")
    ours, strangers = Authority(folder / "ours"), Authority(folder / "strangers")
    async with drafter(ours.issue(DRAFTER_NAME, ANSWERS)) as (port, log):
        yield Worker(port, ours, strangers, log)


async def test_a_coordinator_is_let_in(worker: Worker) -> None:
    assert await worker.model(worker.ours.issue(COORDINATOR_NAME, ANSWERS, CALLS)) == "ngram"
    assert worker.log.empty()


def identities(worker: Worker) -> dict[str, TlsFiles]:
    ours, strangers = worker.ours, worker.strangers
    return {
        "no certificate": TlsFiles(authority=ours.file),
        "another authority": strangers.issue(COORDINATOR_NAME, CALLS, trusting=ours.file),
        "expired": ours.issue(COORDINATOR_NAME, CALLS, file="expired", days=-1),
        "a worker's": ours.issue(VERIFIER_NAME, ANSWERS),
    }


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ("no certificate", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        ("another authority", "certificate signature failure"),
        ("expired", "certificate has expired"),
        ("a worker's", "unsupported certificate purpose"),
    ],
)
async def test_the_wrong_certificate_is_refused(worker: Worker, identity: str, reason: str) -> None:
    assert await answer(worker.port, context(identities(worker)[identity])) == b""
    assert reason in await worker.told()
    assert worker.log.empty()


async def test_plain_text_is_refused(worker: Worker) -> None:
    assert await answer(worker.port, None) == b""
    assert "WRONG_VERSION_NUMBER" in await worker.told()
    assert worker.log.empty()


async def test_tls_before_1_3_is_refused(worker: Worker) -> None:
    files = worker.ours.issue(COORDINATOR_NAME, CALLS, file="old")
    assert await answer(worker.port, context(files, ssl.TLSVersion.TLSv1_2)) == b""
    assert "NO_SHARED_CIPHER" in await worker.told()
    assert worker.log.empty()
    assert await answer(worker.port, context(files)) != b""


async def test_a_certificate_that_may_call_and_bears_another_name_is_refused(worker: Worker) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.model(worker.ours.issue(VERIFIER_NAME, ANSWERS, CALLS, file="caller"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    record = json.loads(await worker.told())
    assert (record["level"], VERIFIER_NAME in record["event"]) == ("warning", True)
    assert worker.log.empty()


async def test_a_method_that_there_is_not_is_refused_too(worker: Worker) -> None:
    files = worker.ours.issue(VERIFIER_NAME, ANSWERS, CALLS, file="caller")
    async with open_channel(f"127.0.0.1:{worker.port}", Transport(files, DRAFTER_NAME)) as channel:
        for path in ("/outrider.v1.DraftService/NoSuch", "//outrider.v1.DraftService/GetModelInfo"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"")
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "refused a call" in await worker.told()


async def test_a_coordinator_takes_no_other_service_for_its_worker(worker: Worker) -> None:
    """The address of a draft service, configured or stolen as that of a verify service."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await worker.model(worker.ours.issue(COORDINATOR_NAME, ANSWERS, CALLS), name=VERIFIER_NAME)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError):
        await worker.model(worker.ours.issue(COORDINATOR_NAME, CALLS, trusting=worker.strangers.file))
    while not worker.log.empty():  # how gRPC tells that the coordinator went away is its own affair
        await worker.told()


async def test_it_still_answers_a_coordinator(worker: Worker) -> None:
    assert await worker.model(worker.ours.issue(COORDINATOR_NAME, ANSWERS, CALLS)) == "ngram"


async def test_certificates_of_a_worker_are_read_again(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ours")
    before, caller = ours.issue(DRAFTER_NAME, ANSWERS), context(ours.issue(COORDINATOR_NAME, CALLS))
    async with drafter(before) as (port, log):
        first = await serial(port, caller)
        assert await serial(port, caller) == first
        ours.issue(DRAFTER_NAME, ANSWERS)
        second = await serial(port, caller)
        assert second != first
        assert "TLS files read again" in await log.get()
        await asyncio.to_thread(Path(before.key).write_text, "no key")
        assert await serial(port, caller) == second
        assert "cannot be used" in await log.get()
        assert await serial(port, caller) == second
        assert log.empty()
