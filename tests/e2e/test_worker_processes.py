"""Workers in processes of their own, which are stopped as a debugger or a full machine stops them, and killed, in
mid-stream: no token is lost."""

from __future__ import annotations

import asyncio
import signal
import threading
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from outrider.client import GenerationMode
from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask, ask_until, assert_same
from tests.e2e.holding import HeldEngine, Watched
from tests.e2e.stack import coordinator, load_tiny, save_tiny, worker, worker_process
from tests.engine.tiny_models import build

PROMPT = [1, 2, 3]
LONG: dict[str, Any] = {
    "max_tokens": 240,
    "ignore_eos": True,
    "sampling": SamplingParams(temperature=0.9, seed=4),
    "num_logprobs": 2,
}
SILENCE_SECONDS = 1.0

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("forked")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(build("llama", layers=2), tmp_path_factory.mktemp("tiny") / "target")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def verifier(folder: Path) -> AsyncIterator[tuple[Process, str]]:
    """A process and its address; the last test that has it kills it."""
    async with worker_process("verify_service", folder) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def drafter(folder: Path) -> AsyncIterator[tuple[Process, str]]:
    """The same. It drafts by the target itself."""
    async with worker_process("draft_service", folder) as running:
        yield running


async def test_a_verifier_that_is_stopped_is_left_and_used_again_when_it_goes_on(
    folder: Path, verifier: tuple[Process, str]
) -> None:
    process, address = verifier

    async def stop() -> None:
        process.send_signal(signal.SIGSTOP)

    async with (
        worker(load_tiny(folder)) as other,
        coordinator(f"{address},{other.address}", "", silence_seconds=SILENCE_SECONDS) as running,
    ):
        await running.until_serving(address, other.address)
        expected = await ask(running.client, PROMPT, **LONG)
        answer = await ask_until(running.client, PROMPT, stop, **LONG)
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text
        assert running.serving() == {other.address}
        process.send_signal(signal.SIGCONT)
        await running.until_serving(address, other.address)


async def test_a_verifier_killed_midway_costs_no_token(
    folder: Path, verifier: tuple[Process, str], seats: Counter[str]
) -> None:
    """The draft is the target itself, so that its guesses are worth verifying."""
    process, address = verifier
    async with (
        worker(load_tiny(folder)) as other,
        worker(load_tiny(folder), draft=True) as draft,
        coordinator(f"{address},{other.address}", draft.address) as running,
    ):
        await running.until_serving(address, other.address, draft.address)
        expected = await ask(running.client, PROMPT, **LONG, speculate=False)
        seats.clear()

        async def kill() -> None:
            process.kill()
            await process.wait()

        answer = await ask_until(running.client, PROMPT, kill, **LONG)
        assert_same(answer, expected)
        assert answer.finished.mode is GenerationMode.SPECULATIVE
        assert (seats[address], seats[other.address], seats[draft.address]) == (1, 1, 1)
        assert answer.finished.speculation.num_accepted_tokens > 0
        await running.until_serving(other.address, draft.address)
        assert_same(await ask(running.client, PROMPT, **LONG), expected)
        await other.all_slots_free()
        await draft.all_slots_free()


async def test_a_drafter_that_is_stopped_costs_only_speed_and_is_left(
    folder: Path, drafter: tuple[Process, str]
) -> None:
    """Whether its coordinator takes notice of its silence or not, and whether that comes in mid-stream or before."""
    process, address = drafter

    async def stop() -> None:
        process.send_signal(signal.SIGSTOP)

    async with (
        worker(load_tiny(folder)) as verify,
        coordinator(verify.address, address, silence_seconds=SILENCE_SECONDS) as running,
        coordinator(verify.address, address) as trusting,
    ):
        for each in (running, trusting):
            await each.until_serving(verify.address, address)
        expected = await ask(running.client, PROMPT, **LONG, speculate=False)
        answer = await ask_until(running.client, PROMPT, stop, **LONG)
        assert answer.token_ids == expected.token_ids
        assert (await ask(trusting.client, PROMPT, **LONG)).token_ids == expected.token_ids
        process.send_signal(signal.SIGCONT)


async def test_a_drafter_killed_midway_costs_only_speed_until_it_comes_back(
    folder: Path, drafter: tuple[Process, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address = drafter
    engine = HeldEngine(build("llama", layers=2), max_sessions=4, max_context=300)
    async with (
        worker(replace(load_tiny(folder), engine=engine)) as verify,
        coordinator(verify.address, address) as running,
    ):
        expected = (await ask(running.client, PROMPT, **LONG, speculate=False)).token_ids
        answer = await ask(running.client, PROMPT, max_tokens=8)
        assert answer.finished.mode is GenerationMode.SPECULATIVE
        watched = Watched(monkeypatch)
        engine.go_on.clear()
        asking = asyncio.create_task(ask(running.client, PROMPT, **LONG))
        try:
            await watched.guessed.wait()
            process.kill()
            await watched.lost.wait()
        finally:
            engine.go_on.set()
        answer = await asking
        assert answer.token_ids == expected
        assert answer.finished.mode is GenerationMode.DEGRADED
        assert answer.finished.mode_reason
        await running.until(lambda workers: workers.draft is None)
        later = await ask(running.client, PROMPT, **LONG)
        assert later.token_ids == expected
        assert later.finished.mode is GenerationMode.TARGET_ONLY
        async with worker(load_tiny(folder), draft=True, listen=address):
            await running.until(lambda workers: workers.draft is not None)
            answer = await ask(running.client, PROMPT, max_tokens=8)
            assert answer.finished.mode is GenerationMode.SPECULATIVE


async def test_a_verifier_whose_device_is_stuck_is_left(folder: Path) -> None:
    """Its event loop answers all the while."""
    stuck, other = load_tiny(folder), load_tiny(folder)
    step, num_steps, release = stuck.engine.step, 0, threading.Event()

    def hang(*arguments: Any, **named: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 9:
            release.wait()
        return step(*arguments, **named)

    async with (
        worker(stuck) as first,
        worker(other) as second,
        coordinator(f"{first.address},{second.address}", "", silence_seconds=SILENCE_SECONDS) as running,
    ):
        await running.until_serving(first.address, second.address)
        expected = await ask(running.client, PROMPT, **LONG)
        stuck.engine.step = hang  # pyright: ignore
        try:
            answers = await asyncio.gather(*(ask(running.client, PROMPT, **LONG) for _ in range(2)))
            assert num_steps == 9
        finally:
            release.set()
        assert [answer.token_ids for answer in answers] == [expected.token_ids] * 2
