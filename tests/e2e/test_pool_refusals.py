"""Workers of a pool that take no session: another one does, or the client hears what to do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from outrider.client import GenerationMode
from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.core.protocol.messages import ModelInfo, Opened
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc import wire
from outrider.rpc.channels import open_channel
from outrider.rpc.server import Server, Service
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.stream_kind import DRAFT
from outrider.rpc.streams import EOF
from outrider.v1 import common_pb2, draft_pb2_grpc, generation_pb2, generation_pb2_grpc, verify_pb2_grpc
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build
from tests.sessions import events

PROMPT = [1, 2, 3]
LONG: dict[str, Any] = {"max_tokens": 240, "ignore_eos": True, "sampling": SamplingParams(temperature=0.9, seed=4)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return save_tiny(build("llama", layers=2), root / "target"), save_tiny(build("llama", layers=1), root / "draft")


class RefusingVerifier(verify_pb2_grpc.VerifyServiceServicer):
    """Says that it serves the target, and takes no session."""

    def __init__(self, info: ModelInfo, real: str, instance_id: str = "refusing") -> None:
        """`real` is the address of a verifier that has the tokenizer."""
        self._info = info._replace(instance_id=instance_id)
        self._real = real
        self.num_refused = 0

    async def GetModelInfo(self, request: Any, context: ServicerContext) -> common_pb2.GetModelInfoResponse:
        return common_pb2.GetModelInfoResponse(model=wire.encode_model_info(self._info))

    async def GetTokenizer(self, request: Any, context: ServicerContext) -> None:
        async with open_channel(self._real) as channel:
            async for chunk in verify_pb2_grpc.VerifyServiceStub(channel).GetTokenizer(request):
                await context.write(chunk)

    @rpc_errors
    async def Verify(self, request: Any, context: ServicerContext) -> None:
        await context.read()
        self.num_refused += 1
        raise SlotsExhaustedError("every slot is taken; try again later")


class RefusingDrafter(draft_pb2_grpc.DraftServiceServicer):
    """Says that it is a fitting drafter, and takes no session, or drops those that it took."""

    def __init__(self, info: ModelInfo, *, opens: bool) -> None:
        self._info = info._replace(instance_id="refusing")
        self._opens = opens

    async def GetModelInfo(self, request: Any, context: ServicerContext) -> common_pb2.GetModelInfoResponse:
        return common_pb2.GetModelInfoResponse(model=wire.encode_model_info(self._info))

    @rpc_errors
    async def Draft(self, request: Any, context: ServicerContext) -> None:
        opening = await context.read()
        if self._opens:
            await context.write(events(DRAFT, Opened(len(PROMPT)), session=opening.commands[0].session))
            if await context.read() is EOF:
                return
        raise SlotsExhaustedError("every slot is taken; try again later")


@asynccontextmanager
async def served(servicer: RefusingVerifier | RefusingDrafter) -> AsyncIterator[str]:
    is_drafter = isinstance(servicer, RefusingDrafter)
    add: Any = draft_pb2_grpc.add_DraftServiceServicer_to_server
    service = Service("outrider.v1.DraftService", add, servicer)
    if not is_drafter:
        add = verify_pb2_grpc.add_VerifyServiceServicer_to_server
        service = Service("outrider.v1.VerifyService", add, servicer)
    server = Server(service)
    port = await server.start("127.0.0.1:0")
    server.set_ready(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_verifier_that_refuses_sends_the_session_to_the_next(folders: tuple[Path, Path]) -> None:
    async with worker(load_tiny(folders[0])) as verify:
        refusing = RefusingVerifier(verify.loaded.info, verify.address)
        async with served(refusing) as address, coordinator(f"{address},{verify.address}", "") as running:
            await running.until_serving(address, verify.address)
            answers = await asyncio.gather(*(ask(running.client, PROMPT, max_tokens=20) for _ in range(6)))
            assert len({tuple(answer.token_ids) for answer in answers}) == 1
            assert refusing.num_refused


async def test_when_all_refuse_the_client_is_asked_to_come_back(folders: tuple[Path, Path]) -> None:
    async with worker(load_tiny(folders[0])) as verify:
        servicers = [RefusingVerifier(verify.loaded.info, verify.address, name) for name in ("one", "two")]
        async with (
            served(servicers[0]) as one,
            served(servicers[1]) as two,
            coordinator(f"{one},{two}", "") as running,
            open_channel(running.address) as channel,
        ):
            await running.until_serving(one, two)
            call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(
                generation_pb2.GenerateRequest(token_ids=generation_pb2.TokenIds(ids=PROMPT))
            )
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async for _ in call:
                    pass
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in rpc_status.from_call(raised.value).details)
    assert [each.num_refused for each in servicers] == [1, 1]


@pytest.mark.parametrize("opens", [False, True])
async def test_a_drafter_that_refuses_is_replaced(folders: tuple[Path, Path], opens: bool, seats: Counter[str]) -> None:
    async with (
        worker(load_tiny(folders[0])) as verify,
        worker(load_tiny(folders[1]), draft=True) as draft,
        served(RefusingDrafter(draft.loaded.info, opens=opens)) as refusing,
        coordinator(verify.address, f"{refusing},{draft.address}") as running,
    ):
        await running.until_serving(verify.address, draft.address, refusing)
        alone = await ask(running.client, PROMPT, **LONG, speculate=False)
        answer = await ask(running.client, PROMPT, **LONG)
        assert answer.token_ids == alone.token_ids
        assert answer.finished.mode is GenerationMode.SPECULATIVE
        assert seats[refusing] == seats[draft.address] == 1


@pytest.mark.parametrize(("opens", "mode"), [(False, GenerationMode.TARGET_ONLY), (True, GenerationMode.DEGRADED)])
async def test_when_all_drafters_refuse_the_answer_says_so(
    folders: tuple[Path, Path], opens: bool, mode: GenerationMode
) -> None:
    async with worker(load_tiny(folders[0])) as verify:
        info = verify.loaded.info
        async with (
            served(RefusingDrafter(info, opens=opens)) as refusing,
            coordinator(verify.address, refusing) as running,
        ):
            answer = await ask(running.client, PROMPT, **LONG)
    assert answer.finished.mode is mode
    assert "every slot is taken" in answer.finished.mode_reason
