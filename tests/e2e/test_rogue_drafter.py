"""A drafter that breaks the protocol loses its stream; the text goes on, token for token."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from outrider.client import GenerationMode
from outrider.core.protocol.messages import DraftWindow, ModelInfo, Opened
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc import wire
from outrider.rpc.server import Server, Service
from outrider.rpc.status import ServicerContext, rpc_errors
from outrider.rpc.stream_kind import DRAFT
from outrider.rpc.streams import EOF
from outrider.v1 import common_pb2, draft_pb2_grpc
from tests.e2e.answers import ask
from tests.e2e.stack import coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import VOCAB_SIZE, build
from tests.sessions import events

PROMPT = [1, 2, 3]
SAMPLED = SamplingParams(temperature=0.9, seed=4)


class RogueDrafter(draft_pb2_grpc.DraftServiceServicer):
    """Says that it is a fitting drafter, and sends what it was given."""

    def __init__(self, info: ModelInfo, windows: Sequence[DraftWindow]) -> None:
        self._info = info
        self._windows = windows

    async def GetModelInfo(self, request: Any, context: ServicerContext) -> common_pb2.GetModelInfoResponse:
        return common_pb2.GetModelInfoResponse(model=wire.encode_model_info(self._info))

    @rpc_errors
    async def Draft(self, request: Any, context: ServicerContext) -> None:
        while (message := await context.read()) is not EOF:
            for session in {command.session for command in message.commands if command.HasField("open")}:
                await context.write(events(DRAFT, Opened(len(PROMPT)), session=session))
                for window in self._windows:
                    await context.write(events(DRAFT, window, session=session))


@asynccontextmanager
async def rogue(info: ModelInfo, windows: Sequence[DraftWindow]) -> AsyncIterator[str]:
    servicer = RogueDrafter(info, windows)
    add = draft_pb2_grpc.add_DraftServiceServicer_to_server
    server = Server(Service("outrider.v1.DraftService", add, servicer))
    port = await server.start("127.0.0.1:0")
    server.set_ready(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def window(**changes: Any) -> DraftWindow:
    return DraftWindow(
        **{"base": 2, "first_id": 1, "parent_ids": [0], "token_ids": [5], "log_probs": [-0.5], **changes}
    )


NONSENSE = {
    "an id out of range": window(token_ids=[VOCAB_SIZE]),
    "an unknown parent": window(parent_ids=[7]),
    "a skipped node id": window(first_id=3),
    "a base in the future": window(base=99),
    "no number as log-probability": window(log_probs=[math.nan]),
    "a negative time": window(draft_ms=-1.0),
    "more than its credit": window(parent_ids=[0] * 60, token_ids=list(range(60)), log_probs=[-1.0] * 60),
    "a window beyond its bound": window(parent_ids=[0] * 300, token_ids=[1] * 300, log_probs=[-1.0] * 300),
    "lists of unequal length": window(log_probs=[-1.0, -1.0]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(build("llama"), tmp_path_factory.mktemp("tiny") / "target")


REQUESTS_MAX = 20
"""A window that the first verdict overtakes is stale, and stale nodes use up no credit: then the next request tells."""


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_costs_the_drafter_its_stream_and_nothing_else(folder: Path, name: str) -> None:
    target = load_tiny(folder)
    async with (
        worker(target) as verify,
        rogue(target.info, [NONSENSE[name]]) as address,
        coordinator(verify.address, address, max_run_ahead=24) as running,
    ):
        arguments = {"max_tokens": 40, "ignore_eos": True, "sampling": SAMPLED}
        alone = await ask(running.client, PROMPT, **arguments, speculate=False)
        for _ in range(REQUESTS_MAX):
            answer = await ask(running.client, PROMPT, **arguments)
            assert answer.token_ids == alone.token_ids
            if answer.finished.mode is GenerationMode.DEGRADED:
                break
    assert answer.finished.mode is GenerationMode.DEGRADED
    assert "broke the protocol" in answer.finished.mode_reason


async def test_wrong_guesses_in_good_form_change_nothing(folder: Path) -> None:
    target = load_tiny(folder)
    guesses = [window(), window(first_id=2, parent_ids=[1, 2, 3], token_ids=[9, 9, 9], log_probs=[-0.1] * 3)]
    async with (
        worker(target) as verify,
        rogue(target.info, [*guesses, *guesses]) as address,
        coordinator(verify.address, address, max_run_ahead=24) as running,
    ):
        arguments = {"max_tokens": 40, "ignore_eos": True, "sampling": SAMPLED}
        alone = await ask(running.client, PROMPT, **arguments, speculate=False)
        answer = await ask(running.client, PROMPT, **arguments)
    assert answer.token_ids == alone.token_ids
    assert answer.finished.mode is GenerationMode.SPECULATIVE
