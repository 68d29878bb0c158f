"""Sessions end cleanly: cancelled clients, lost drafters, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from outrider.client import GenerationMode, Started, Tokens
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import FinishReason
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.channels import open_channel
from tests.e2e.answers import ask
from tests.e2e.stack import RunningWorker, Stack, coordinator, load_tiny, save_tiny, stack, worker
from tests.engine.tiny_models import build

PROMPT = [1, 2, 3]
NUM_CYCLES = 100
SAMPLED = SamplingParams(temperature=0.9, seed=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return save_tiny(build("llama", layers=2), root / "target"), save_tiny(build("llama", layers=1), root / "draft")


@asynccontextmanager
async def pair(folders: tuple[Path, Path]) -> AsyncIterator[tuple[Stack, RunningWorker, RunningWorker]]:
    async with AsyncExitStack() as running:
        verify = await running.enter_async_context(worker(load_tiny(folders[0])))
        draft = await running.enter_async_context(worker(load_tiny(folders[1]), draft=True))
        coordinate = await running.enter_async_context(coordinator(verify.address, draft.address))
        yield coordinate, verify, draft


async def test_a_client_that_leaves_frees_both_slots(folders: tuple[Path, Path]) -> None:
    async with pair(folders) as (running, verify, draft):
        async with aclosing(running.client.generate(PROMPT, max_tokens=250, ignore_eos=True)) as events:
            assert isinstance(await anext(events), Started)
            assert isinstance(await anext(events), Tokens)
            assert verify.loaded.engine.num_free_slots < verify.loaded.engine.max_sessions
        await verify.all_slots_free()
        await draft.all_slots_free()


async def test_a_hundred_cancelled_generations_leak_nothing(folders: tuple[Path, Path]) -> None:
    async with pair(folders) as (running, verify, draft):
        for _ in range(3):
            await ask(running.client, PROMPT, max_tokens=4)
        num_files, num_tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        for cycle in range(NUM_CYCLES):
            async with aclosing(running.client.generate(PROMPT, max_tokens=250, ignore_eos=True)) as events:
                for _ in range(cycle % 4):
                    await anext(events)
        await verify.all_slots_free()
        await draft.all_slots_free()
        answer = await ask(running.client, PROMPT, max_tokens=20)
        assert answer.finished.mode is GenerationMode.SPECULATIVE
        assert (await running.client.server_info()).num_running == 0
        assert len(os.listdir("/proc/self/fd")) <= num_files
        while len(asyncio.all_tasks()) > num_tasks:  # cancelled handlers end on their own; a leak runs into the timeout
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=0.1)


async def test_without_a_drafter_the_target_runs_alone_and_says_so(folders: tuple[Path, Path]) -> None:
    async with worker(load_tiny(folders[0])) as verify, coordinator(verify.address, "127.0.0.1:1") as running:
        answer = await ask(running.client, PROMPT, max_tokens=20, sampling=SAMPLED)
        assert answer.finished.mode is GenerationMode.TARGET_ONLY
        assert "draft service" in answer.finished.mode_reason
        assert "draft service" in (await running.client.server_info()).target_only_reason


async def test_a_verifier_lost_midway_ends_the_call_with_words(folders: tuple[Path, Path]) -> None:
    async with pair(folders) as (running, verify, draft):
        events = running.client.generate(PROMPT, max_tokens=250, ignore_eos=True)
        assert isinstance(await anext(events), Started)
        assert isinstance(await anext(events), Tokens)
        await verify.server.stop(None)
        with pytest.raises(WorkerUnavailableError):
            [event async for event in events]
        await draft.all_slots_free()


async def test_stop_strings_and_stop_tokens_end_the_text_where_they_should(folders: tuple[Path, Path]) -> None:
    async with stack(load_tiny(folders[0]), load_tiny(folders[1])) as running:
        whole = await ask(running.client, PROMPT, max_tokens=60, ignore_eos=True, sampling=SAMPLED)
        stop = whole.text[20:23]
        end = whole.text.index(stop)
        for speculate in (True, False):
            cut = await ask(
                running.client,
                PROMPT,
                max_tokens=60,
                ignore_eos=True,
                sampling=SAMPLED,
                stop=[stop],
                speculate=speculate,
            )
            assert cut.text == whole.text[:end]
            assert cut.finished.reason is FinishReason.STOP_STRING
            assert cut.token_ids == whole.token_ids[: end + len(stop)]
        stop_token = whole.token_ids[10]
        first = whole.token_ids.index(stop_token)
        cut = await ask(
            running.client, PROMPT, max_tokens=60, ignore_eos=True, sampling=SAMPLED, stop_token_ids=[stop_token]
        )
        assert cut.token_ids == whole.token_ids[: first + 1]
        assert cut.finished.reason is FinishReason.STOP_TOKEN


async def test_a_draft_session_by_hand_ends_after_its_credit(folders: tuple[Path, Path]) -> None:
    """What a person with grpcurl does: open, one commit, end of input."""
    from outrider.v1 import draft_pb2, draft_pb2_grpc

    async with worker(load_tiny(folders[1]), draft=True) as draft, open_channel(draft.address) as channel:
        call = draft_pb2_grpc.DraftServiceStub(channel).Draft()
        opening = draft_pb2.DraftOpen(
            token_ids=PROMPT, num_prompt_tokens=3, max_run_ahead=5, tree_width=1, max_length=60, vocab_size=61
        )
        await call.write(draft_pb2.DraftCommands(commands=[draft_pb2.DraftCommand(open=opening)]))
        await call.done_writing()
        messages = [message async for message in call]
        events = [event for message in messages for event in message.events]
        assert events[0].WhichOneof("event") == "opened"
        assert sum(len(event.drafted.token_ids) for event in events) == 5
        assert [number for message in messages for number in message.ended] == [0]
        assert await call.code() is grpc.StatusCode.OK
