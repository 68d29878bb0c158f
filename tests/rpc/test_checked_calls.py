"""What a worker tells of itself arrives as it was sent, or is asked for again."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from itertools import count
from typing import Any, Final

import pytest

from outrider.core.protocol.errors import DamagedMessageError
from outrider.rpc import checksum
from outrider.rpc.checked_calls import DAMAGED_MAX
from outrider.rpc.wire import encode_load, encode_model_info
from outrider.rpc.worker_client import WorkerClient
from outrider.v1 import common_pb2, draft_pb2, verify_pb2, verify_pb2_grpc
from tests.coordinator.scripted_worker import MODEL, load
from tests.rpc.served_verifier import client_of

CONTENT: Final = b"{}"


class Verifier(verify_pb2_grpc.VerifyServiceServicer):
    """Tells of itself, and counts how often it is asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def GetModelInfo(self, request: Any, context: Any) -> Any:
        self.num_asked += 1
        return common_pb2.GetModelInfoResponse(model=encode_model_info(MODEL))

    async def GetLoad(self, request: Any, context: Any) -> None:
        self.num_asked += 1
        for num_sessions in (1, 2):
            await context.write(encode_load(load(num_sessions)))

    async def GetSpans(self, request: Any, context: Any) -> Any:
        self.num_asked += 1
        return common_pb2.GetSpansResponse()

    async def GetTokenizer(self, request: Any, context: Any) -> None:
        self.num_asked += 1
        sha256 = hashlib.sha256(2 * CONTENT).hexdigest()
        for _ in range(2):
            await context.write(verify_pb2.GetTokenizerResponse(chunk=CONTENT, sha256=sha256))


@pytest.fixture
async def verifier() -> AsyncIterator[tuple[Verifier, WorkerClient]]:
    servicer = Verifier()
    async with client_of(servicer) as client:
        yield servicer, client


async def model(client: WorkerClient) -> object:
    return await anext(client.watch_model())


async def loads(client: WorkerClient) -> object:
    async with aclosing(client.watch_load()) as watched:
        return [each.num_sessions async for each in watched]


async def spans(client: WorkerClient) -> object:
    return await client.spans("it")


async def tokenizer(client: WorkerClient) -> object:
    return (await client.fetch_tokenizer()).json


ANSWERS: dict[Callable[[WorkerClient], Awaitable[object]], object] = {
    model: MODEL,
    loads: [1, 2],
    spans: [],
    tokenizer: 2 * CONTENT,
}


def damaging(monkeypatch: pytest.MonkeyPatch, where: str, numbers: range) -> None:
    """Of the messages that are sealed there, those of these numbers arrive with flipped bits."""
    sealed, counted = checksum.sealed, count()

    def seal(content: bytes) -> bytes:
        whole = sealed(content)
        return whole[:-1] + bytes([whole[-1] ^ 0b101]) if next(counted) in numbers else whole

    monkeypatch.setattr(where, seal)


SERVER, CLIENT = "outrider.rpc.checksum.sealed", "outrider.rpc.checked_calls.sealed"


@pytest.mark.parametrize("ask", ANSWERS, ids=lambda ask: ask.__name__)
@pytest.mark.parametrize("where", [SERVER, CLIENT])
async def test_a_worker_is_asked_again_when_its_answer_was_damaged(
    verifier: tuple[Verifier, WorkerClient],
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[WorkerClient], Awaitable[object]],
    where: str,
) -> None:
    damaging(monkeypatch, where, range(1))
    assert await ask(verifier[1]) == ANSWERS[ask]


@pytest.mark.parametrize("ask", ANSWERS, ids=lambda ask: ask.__name__)
async def test_no_answer_of_a_worker_goes_unchecked(
    verifier: tuple[Verifier, WorkerClient],
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[WorkerClient], Awaitable[object]],
) -> None:
    servicer, client = verifier
    damaging(monkeypatch, SERVER, range(1000))
    with pytest.raises(DamagedMessageError):
        await ask(client)
    assert servicer.num_asked in (0, DAMAGED_MAX + 1), "no health, no model"


def test_the_number_of_the_checksum_is_nobody_elses() -> None:
    for service in verify_pb2.DESCRIPTOR.services_by_name, draft_pb2.DESCRIPTOR.services_by_name:
        for method in next(iter(service.values())).methods:
            for message in (method.input_type, method.output_type):
                field = message.fields_by_number.get(14)
                assert field is None or field.name == "checksum", message.full_name


async def test_a_load_that_is_damaged_later_is_told_again(
    verifier: tuple[Verifier, WorkerClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaging(monkeypatch, SERVER, range(1, 2))
    assert await loads(verifier[1]) == [1, 1, 2]
