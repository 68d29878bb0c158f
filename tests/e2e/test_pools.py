"""Pools: sessions spread, workers come and go, and whoever is lost, the tokens are the same; those that are killed:
test_worker_processes.py."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from outrider.client import Finished, GenerationMode, Started, Tokens
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.channels import open_channel
from outrider.v1 import generation_pb2, generation_pb2_grpc
from outrider.worker.startup import LoadedModel
from tests.e2e.answers import ask, ask_all, ask_until, assert_same
from tests.e2e.stack import (
    RunningWorker,
    Stack,
    coordinator,
    free_address,
    load_tiny,
    save_tiny,
    worker,
)
from tests.engine.tiny_models import build

PROMPT = [1, 2, 3]
NUM_TOKENS = 240
SAMPLED = SamplingParams(temperature=0.9, seed=4)
LONG: dict[str, Any] = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "sampling": SAMPLED, "num_logprobs": 2}

SHORT = LONG | {"max_tokens": 60}
"""Where several sessions need only be there at the same time."""

STEP_SECONDS = 0.02
"""Of a verifier that shall still be at work when something else has happened."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return save_tiny(build("llama", layers=2), root / "target"), save_tiny(build("llama", layers=1), root / "draft")


def slow_down(loaded: LoadedModel) -> None:
    """Its steps take at least STEP_SECONDS, until it may `hasten`."""
    step = loaded.engine.step

    def slow(*arguments: Any, **named: Any) -> Any:
        started = time.monotonic()
        output = step(*arguments, **named)
        time.sleep(max(0.0, started + STEP_SECONDS - time.monotonic()))
        return output

    loaded.engine.step = slow  # pyright: ignore


def hasten(loaded: LoadedModel) -> None:
    """It takes no longer for its steps than it must, but counts as touched; see `stack.py`."""
    loaded.engine.step = partial(type(loaded.engine).step, loaded.engine)  # pyright: ignore


async def server_info(stack: Stack) -> generation_pb2.GetServerInfoResponse:
    async with open_channel(stack.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        return await stub.GetServerInfo(generation_pb2.GetServerInfoRequest())


@asynccontextmanager
async def workers(folder: Path, count: int, *, draft: bool = False) -> AsyncIterator[list[RunningWorker]]:
    async with AsyncExitStack() as running:
        yield [await running.enter_async_context(worker(load_tiny(folder), draft=draft)) for _ in range(count)]


def listed(*running: RunningWorker) -> str:
    return ",".join(each.address for each in running)


async def test_two_coordinators_share_two_verifiers_and_two_drafters(
    folders: tuple[Path, Path], seats: Counter[str]
) -> None:
    async with (
        workers(folders[0], 2) as verifiers,
        workers(folders[1], 2, draft=True) as drafters,
        coordinator(listed(*verifiers), listed(*drafters)) as first,
        coordinator(listed(*verifiers), listed(*drafters)) as second,
    ):
        addresses = {each.address for each in (*verifiers, *drafters)}
        for running in (first, second):
            await running.until_serving(*addresses)
        alone = await ask(first.client, PROMPT, **SHORT, speculate=False)
        seats.clear()
        answers = await asyncio.gather(
            *(ask(running.client, PROMPT, **SHORT) for _ in range(4) for running in (first, second))
        )
        assert set(seats) == addresses
        for each in (*verifiers, *drafters):
            assert seats[each.address] >= 2, seats
        for answer in answers:
            assert answer.token_ids == alone.token_ids
            assert answer.finished.mode is GenerationMode.SPECULATIVE
            assert answer.finished.mode_reason == ""
        rows = {row.address: row for row in (await server_info(first)).replicas}
        assert set(rows) == addresses
        for each in verifiers:
            row = rows[each.address]
            assert (row.service, row.serving, row.problem) == ("outrider.v1.VerifyService", True, "")
            assert row.model.instance_id == each.loaded.info.instance_id
            assert row.load.instance_id in ("", each.loaded.info.instance_id)
            assert row.num_own_sessions == 0


async def test_completions_of_one_request_share_a_verifier(folders: tuple[Path, Path], seats: Counter[str]) -> None:
    async with workers(folders[0], 2) as verifiers, coordinator(listed(*verifiers), "") as running:
        await running.until_serving(*(each.address for each in verifiers))
        await ask_all(running.client, PROMPT, max_tokens=30, ignore_eos=True, num_completions=4)
        assert list(seats.values()) == [4]


async def test_workers_that_appear_are_used(folders: tuple[Path, Path], seats: Counter[str]) -> None:
    """Two addresses are configured where nobody serves yet."""
    addresses = [free_address(), free_address()]
    async with AsyncExitStack() as running:
        verify = await running.enter_async_context(worker(load_tiny(folders[0])))
        draft = await running.enter_async_context(worker(load_tiny(folders[1]), draft=True))
        coordinate = await running.enter_async_context(
            coordinator(f"{verify.address},{addresses[0]}", f"{draft.address},{addresses[1]}")
        )
        await coordinate.until_serving(verify.address, draft.address)
        rows = {row.address: row for row in (await server_info(coordinate)).replicas}
        assert "cannot be reached" in rows[addresses[0]].problem
        await running.enter_async_context(worker(load_tiny(folders[0]), listen=addresses[0]))
        await running.enter_async_context(worker(load_tiny(folders[1]), draft=True, listen=addresses[1]))
        await coordinate.until_serving(verify.address, draft.address, *addresses)
        await asyncio.gather(*(ask(coordinate.client, PROMPT, **SHORT) for _ in range(4)))
        assert seats[addresses[0]]
        assert seats[addresses[1]]


async def test_a_drafter_that_is_terminated_is_drained(folders: tuple[Path, Path], seats: Counter[str]) -> None:
    """Its running session goes on with another one, new ones too, and its drain is over long before its time."""
    async with (
        worker(load_tiny(folders[0])) as verify,
        worker(load_tiny(folders[1]), draft=True) as draining,
        worker(load_tiny(folders[1]), draft=True) as other,
        coordinator(verify.address, f"{draining.address},{other.address}") as running,
    ):
        await running.until_serving(verify.address, draining.address, other.address)
        slow_down(verify.loaded)
        async with aclosing(running.client.generate(PROMPT, **LONG)) as events:
            assert isinstance(await anext(events), Started)
            assert isinstance(await anext(events), Tokens)
            assert seats[draining.address] == 1
            await draining.server.stop(3600.0)
            assert seats[other.address] == 1, "the session has moved"
            later = await ask(running.client, PROMPT, max_tokens=8)
            assert later.finished.mode is GenerationMode.SPECULATIVE
            assert seats[draining.address] == 1
            assert seats[other.address] == 2
            hasten(verify.loaded)
            async for event in events:
                last = event
        assert isinstance(last, Finished)
        assert last.mode is GenerationMode.SPECULATIVE


async def test_a_drafter_lost_midway_is_replaced(folders: tuple[Path, Path], seats: Counter[str]) -> None:
    """Drafters that are killed: test_worker_processes.py."""
    async with (
        worker(load_tiny(folders[0])) as verify,
        worker(load_tiny(folders[1]), draft=True) as first,
        worker(load_tiny(folders[1]), draft=True) as other,
        coordinator(verify.address, f"{first.address},{other.address}") as running,
    ):
        await running.until_serving(verify.address, first.address, other.address)
        expected = await ask(running.client, PROMPT, **LONG, speculate=False)
        slow_down(verify.loaded)

        async def lose_the_first() -> None:
            await first.server.stop(None)
            while not seats[other.address]:
                await running.client.server_info()
            hasten(verify.loaded)

        answer = await ask_until(running.client, PROMPT, lose_the_first, **LONG)
        assert_same(answer, expected)
        assert answer.finished.mode is GenerationMode.SPECULATIVE
        assert answer.finished.mode_reason == ""
        assert (seats[first.address], seats[other.address]) == (1, 1)
        await other.all_slots_free()


async def test_without_another_verifier_the_call_ends_with_words(folders: tuple[Path, Path]) -> None:
    async with (
        worker(load_tiny(folders[0])) as verify,
        coordinator(f"{verify.address},127.0.0.1:1", "") as running,
    ):
        with pytest.raises(WorkerUnavailableError):
            await ask_until(running.client, PROMPT, partial(verify.server.stop, None), **LONG)


async def test_a_drafter_without_a_free_slot_is_not_waited_for(folders: tuple[Path, Path]) -> None:
    async with (
        worker(load_tiny(folders[0])) as verify,
        worker(load_tiny(folders[1], max_sessions=1), draft=True) as draft,
        coordinator(verify.address, draft.address) as running,
    ):
        slow_down(verify.loaded)
        async with aclosing(running.client.generate(PROMPT, **LONG)) as events:
            assert isinstance(await anext(events), Started)
            assert isinstance(await anext(events), Tokens)
            other = await ask(running.client, PROMPT, max_tokens=8)
            hasten(verify.loaded)
            async for event in events:
                last = event
        assert other.finished.mode is GenerationMode.TARGET_ONLY
        assert "all of its 1 slots are taken" in other.finished.mode_reason
        assert isinstance(last, Finished)
        assert last.mode is GenerationMode.SPECULATIVE


async def test_a_drafter_that_does_not_fit_is_refused_for_itself_only(
    folders: tuple[Path, Path], seats: Counter[str]
) -> None:
    stranger = load_tiny(folders[1])
    stranger = replace(stranger, info=stranger.info._replace(tokenizer_sha256="another"))
    async with (
        workers(folders[0], 2) as verifiers,
        worker(load_tiny(folders[1]), draft=True) as draft,
        worker(stranger, draft=True) as misfit,
        coordinator(f"{listed(*verifiers)},127.0.0.1:1", f"{misfit.address},{draft.address}") as running,
    ):
        good = [each.address for each in (*verifiers, draft)]
        await running.until_serving(*good)
        answers = await asyncio.gather(*(ask(running.client, PROMPT, **SHORT) for _ in range(4)))
        assert {answer.finished.mode for answer in answers} == {GenerationMode.SPECULATIVE}
        assert misfit.address not in seats
        rows = {row.address: row for row in (await server_info(running)).replicas}
        assert "different vocabularies" in rows[misfit.address].problem
        assert not rows[misfit.address].serving


async def test_a_verifier_of_another_target_is_refused_for_itself_only(
    folders: tuple[Path, Path], tmp_path: Path, seats: Counter[str]
) -> None:
    odd = load_tiny(save_tiny(build("llama", layers=3), tmp_path / "target"))
    address = free_address()
    async with (
        worker(load_tiny(folders[0])) as verify,
        coordinator(f"{address},{verify.address}", "") as running,
        worker(odd, listen=address),
    ):
        await running.until(lambda _: any("no session could move" in str(refusal) for _, refusal in running.workers))
        await asyncio.gather(*(ask(running.client, PROMPT, max_tokens=20) for _ in range(4)))
        assert address not in seats
        assert running.workers.target == verify.loaded.info
