"""A worker that does not say what it serves is not waited for without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.rpc import worker_client
from outrider.rpc.worker_client import WorkerClient
from outrider.v1 import verify_pb2, verify_pb2_grpc
from tests.rpc.served_verifier import client_of


class Silent(verify_pb2_grpc.VerifyServiceServicer):
    """Sends a part of its tokenizer, then nothing until it is left."""

    def __init__(self) -> None:
        self.is_left = asyncio.Event()

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    async def GetTokenizer(self, request: Any, context: Any) -> None:
        try:
            await context.write(verify_pb2.GetTokenizerResponse(chunk=b"{", sha256="0" * 64))
            await asyncio.Event().wait()
        finally:
            self.is_left.set()


@pytest.fixture
async def silent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Silent, WorkerClient]]:
    monkeypatch.setattr(worker_client, "ANSWER_SECONDS", 0.1)
    servicer = Silent()
    async with client_of(servicer) as client:
        yield servicer, client


async def test_a_tokenizer_that_does_not_go_on_is_given_up(silent: tuple[Silent, WorkerClient]) -> None:
    servicer, client = silent
    with pytest.raises(WorkerUnavailableError, match=r"sent nothing of its tokenizer for 0\.1 s"):
        await client.fetch_tokenizer()
    await servicer.is_left.wait()


async def test_so_is_a_worker_that_does_not_say_what_it_serves(silent: tuple[Silent, WorkerClient]) -> None:
    with pytest.raises(WorkerUnavailableError, match="did not answer in time"):
        await anext(silent[1].watch_model())
