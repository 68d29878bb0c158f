"""The drafter without a model: the target's own tokens all the same, and fewer rounds where the text repeats itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from draft_service.config import DraftConfig
from draft_service.ngram_drafter import NgramDrafting
from draft_service.servicer import DraftServicer
from draft_service.without_model import begin
from outrider.client import GenerationMode
from outrider.core.draft.estimates import DraftEstimates
from outrider.core.estimate.confidence import NGRAM_PROBABILITIES, ngram_bin
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.ngram_static import VOCAB_SIZE_MAX
from outrider.core.protocol.errors import (
    ModelMismatchError,
    OutriderError,
    ProtocolViolationError,
    SlotsExhaustedError,
)
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc import wire
from outrider.rpc.channels import open_channel
from outrider.rpc.server import Server, Service
from outrider.rpc.stream_kind import DRAFT
from outrider.v1 import common_pb2, draft_pb2_grpc
from outrider.worker.ngram_file import NgramFile, load_ngrams
from recipes.ngram_table import write
from tests.e2e.answers import ask
from tests.e2e.stack import MODELS, SILENT, Stack, bundled, coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build
from tests.sessions import commands, rest, told

TOKENIZER = MODELS / "target" / "tokenizer.json"
TEXT = "".join(f"def area_{name}(self):\n    return self.width * self.height\n\n\n" for name in "abcdefgh")
PROMPTS = (TEXT, "import os\n\n\ndef walk(path):\n", "class Node:\n    def __init__(self, left, right):\n")
NUM_TOKENS = 64


@asynccontextmanager
async def ngram_worker(file: NgramFile | None = None, **settings: Any) -> AsyncIterator[str]:
    """Serves n-gram drafts in this process. Yields the address."""
    servicer = DraftServicer(SILENT)
    begin(servicer, DraftConfig(model="ngram", **settings), file)
    server = Server(
        Service("outrider.v1.DraftService", draft_pb2_grpc.add_DraftServiceServicer_to_server, servicer),
    )
    port = await server.start("127.0.0.1:0")
    server.set_ready(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running() -> AsyncIterator[Stack]:
    async with (
        worker(bundled("target")) as verify,
        ngram_worker() as draft,
        coordinator(verify.address, draft) as stack,
    ):
        yield stack


def opening(**changes: Any) -> DraftOpen:
    fields = {
        "session_id": "s",
        "token_ids": [1, 2, 3, 4, 1, 2],
        "num_prompt_tokens": 6,
        "sampling": SamplingParams(),
        "max_run_ahead": 8,
        "tree_width": 1,
        "max_length": 100,
        "vocab_size": 50,
    }
    return DraftOpen(**{**fields, **changes})


def table(folder: Path) -> NgramFile:
    write(folder / "ngrams.safetensors", [TEXT], TOKENIZER, width=2, min_count=2)
    return load_ngrams(folder / "ngrams.safetensors")


@pytest.mark.asyncio(loop_scope="module")
async def test_greedy_text_is_the_targets_and_its_repetitions_are_accepted(running: Stack) -> None:
    num_accepted = num_rounds = 0
    for prompt in PROMPTS:
        alone = await ask(running.client, prompt, max_tokens=NUM_TOKENS, ignore_eos=True, speculate=False)
        together = await ask(running.client, prompt, max_tokens=NUM_TOKENS, ignore_eos=True)
        assert together.token_ids == alone.token_ids
        assert together.finished.mode is GenerationMode.SPECULATIVE
        num_accepted += together.finished.speculation.num_accepted_tokens
        num_rounds += together.finished.speculation.num_rounds
    assert num_accepted > NUM_TOKENS / 2
    assert num_rounds == len(PROMPTS) * NUM_TOKENS - num_accepted


@pytest.mark.parametrize("tree_width", [1, 3])
@pytest.mark.asyncio(loop_scope="module")
async def test_sampled_text_is_the_targets(running: Stack, tree_width: int) -> None:
    num_drafted = 0
    for seed, prompt in enumerate(PROMPTS):
        arguments = {"sampling": SamplingParams(temperature=0.8, top_p=0.95, seed=seed), "max_tokens": NUM_TOKENS}
        alone = await ask(running.client, prompt, **arguments, speculate=False)
        together = await ask(running.client, prompt, **arguments, tree_width=tree_width)
        assert together.token_ids == alone.token_ids
        num_drafted += together.finished.speculation.num_drafted_nodes
    assert num_drafted > 0


async def test_it_drafts_for_a_target_of_any_vocabulary(tmp_path: Path) -> None:
    target = load_tiny(save_tiny(build("llama", layers=2), tmp_path / "target"))
    async with (
        worker(target) as verify,
        ngram_worker() as draft,
        coordinator(verify.address, draft) as stack,
    ):
        for prompt in ([1, 7, 9, 3], [5] * 12):
            alone = await ask(stack.client, prompt, max_tokens=64, ignore_eos=True, speculate=False)
            together = await ask(stack.client, prompt, max_tokens=64, ignore_eos=True)
            assert together.token_ids == alone.token_ids
            assert together.finished.mode is GenerationMode.SPECULATIVE


async def test_a_static_table_drafts_for_its_own_vocabulary_alone(tmp_path: Path) -> None:
    target = load_tiny(save_tiny(build("llama", layers=2), tmp_path / "target"))
    async with ngram_worker(table(tmp_path)) as draft:
        async with worker(bundled("target")) as verify, coordinator(verify.address, draft) as stack:
            answer = await ask(stack.client, "def area_x(self):\n", max_tokens=16, ignore_eos=True)
            alone = await ask(stack.client, "def area_x(self):\n", max_tokens=16, ignore_eos=True, speculate=False)
            assert answer.token_ids == alone.token_ids
            assert answer.finished.speculation.num_drafted_nodes > 0
        async with worker(target) as verify, coordinator(verify.address, draft) as stack:
            with pytest.raises(ModelMismatchError, match="different vocabularies"):
                await ask(stack.client, [1, 2, 3], max_tokens=4)


async def test_it_says_what_it_serves() -> None:
    async with ngram_worker(max_sessions=3, max_context=99) as draft, open_channel(draft) as channel:
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        info = wire.decode_model_info((await stub.GetModelInfo(common_pb2.GetModelInfoRequest())).model)
    assert (info.name, info.tokenizer_sha256, info.vocab_size) == ("ngram", "", VOCAB_SIZE_MAX)
    assert (info.max_sessions, info.max_context, info.num_parameters) == (3, 99, 0)


async def test_a_stream_by_hand_uses_its_credit_and_ends() -> None:
    async with ngram_worker() as draft, open_channel(draft) as channel:
        stream = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        await stream.write(commands(DRAFT, opening()))
        events: list[object] = []
        while not any(isinstance(event, DraftWindow) for event in events):
            events += told(DRAFT, await stream.read())
        await stream.write(commands(DRAFT, Commitment(6, [3, 4], rollback=False)))
        await stream.done_writing()
        events += await rest(DRAFT, stream)
        assert await stream.code() is grpc.StatusCode.OK
    assert events[0] == Opened(6)
    windows = [event for event in events[1:] if isinstance(event, DraftWindow)]
    assert windows[0].token_ids[:4] == [3, 4, 1, 2]
    assert [(window.base, len(window.token_ids)) for window in windows] == [(5, 8), (7, 2)]


@pytest.mark.parametrize(
    ("breach", "error", "text"),
    [
        ([Commitment(6, [3], rollback=False)], ProtocolViolationError, "begins with `open`"),
        ([opening(), opening()], ProtocolViolationError, "`open` was sent already"),
        ([opening(), Commitment(8, [3], rollback=False)], ProtocolViolationError, "leaves a gap"),
        ([opening(), Commitment(6, [50], rollback=False)], ProtocolViolationError, "beyond the target's vocabulary"),
        ([opening(token_ids=[VOCAB_SIZE_MAX], num_prompt_tokens=1)], OutriderError, "out of range"),
    ],
)
async def test_what_breaks_the_protocol_ends_that_session_alone(
    breach: list[DraftOpen | Commitment], error: type[OutriderError], text: str
) -> None:
    async with ngram_worker() as draft, open_channel(draft) as channel:
        stream = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        await stream.write(commands(DRAFT, opening()))
        for command in breach:
            await stream.write(commands(DRAFT, command, session=1))
        await stream.done_writing()
        messages = [message async for message in stream]
    failure = [each for message in messages for each in told(DRAFT, message, session=1)][-1]
    assert isinstance(failure, error)
    assert text in str(failure)
    assert len([event for message in messages for event in told(DRAFT, message)]) == 2


async def test_a_session_too_many_is_refused_until_one_ends() -> None:
    async with ngram_worker(max_sessions=1) as draft, open_channel(draft) as channel:
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        first = stub.Draft()
        await first.write(commands(DRAFT, opening()))
        assert await first.read() is not grpc.aio.EOF
        second = stub.Draft()
        await second.write(commands(DRAFT, opening()))
        await second.done_writing()
        with pytest.raises(SlotsExhaustedError):
            await rest(DRAFT, second)
        await first.done_writing()
        await rest(DRAFT, first)
        third = stub.Draft()
        await third.write(commands(DRAFT, opening()))
        await third.done_writing()
        assert len(await rest(DRAFT, third)) == 2


def test_guesses_follow_what_is_committed() -> None:
    session = NgramDrafting(opening(), DraftEstimates(NGRAM_PROBABILITIES, ngram_bin), NgramTable())
    assert session.prepare()
    first = session.draft()
    assert first is not None
    assert list(first.token_ids) == [3, 4, 1, 2, 3, 4, 1, 2]
    assert session.draft() is None
    session.commit(Commitment(6, [9, 1], rollback=True))
    second = session.draft()
    assert second is not None
    assert (second.base, second.token_ids[0]) == (7, 2)
    session.commit(Commitment(6, [9, 1], rollback=True))
    assert session.draft() is None


def test_guesses_stay_within_the_targets_vocabulary(tmp_path: Path) -> None:
    file = table(tmp_path)
    session = NgramDrafting(
        opening(vocab_size=3, token_ids=[1, 2, 1], num_prompt_tokens=3),
        DraftEstimates(NGRAM_PROBABILITIES, ngram_bin),
        NgramTable(static=file.table),
    )
    assert session.prepare()
    window = session.draft()
    assert window is not None
    assert set(window.token_ids) <= {1, 2}


def test_the_service_without_a_model_loads_nothing_heavy() -> None:
    code = "import sys, draft_service.__main__, draft_service.without_model; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "draft_service.without_model" in loaded
    assert not {"torch", "safetensors", "numpy", "transformers"} & set(loaded)
