"""Workers that are stopped as a debugger or a full machine stops them, in mid-stream: no token is lost."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from outrider.client import Finished, Started, Tokens
from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import Answer, ask
from tests.e2e.stack import Stack, coordinator, load_tiny, save_tiny, worker, worker_process
from tests.engine.tiny_models import build

PROMPT = [1, 2, 3]
LONG: dict[str, Any] = {
    "max_tokens": 240,
    "ignore_eos": True,
    "sampling": SamplingParams(temperature=0.9, seed=4),
}
SILENCE_SECONDS = 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(build("llama", layers=2), tmp_path_factory.mktemp("tiny") / "target")


async def until_stopped(running: Stack, process: asyncio.subprocess.Process) -> Answer:
    """A long generation in whose midst a process is stopped. It is not continued."""
    rounds: list[Tokens] = []
    async with aclosing(running.client.generate(PROMPT, **LONG)) as events:
        started = await anext(events)
        assert isinstance(started, Started)
        async for event in events:
            if isinstance(event, Tokens):
                if not rounds:
                    process.send_signal(signal.SIGSTOP)
                rounds.append(event)
    assert isinstance(event, Finished)
    return Answer(started, rounds, event)


async def test_a_verifier_that_is_stopped_is_left_and_used_again_when_it_goes_on(folder: Path) -> None:
    async with (
        worker_process("verify_service", folder) as (process, address),
        worker(load_tiny(folder)) as other,
        coordinator(f"{address},{other.address}", "", silence_seconds=SILENCE_SECONDS) as running,
    ):
        await running.until_serving(address, other.address)
        expected = await ask(running.client, PROMPT, **LONG)
        answer = await until_stopped(running, process)
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text
        assert running.serving() == {other.address}
        process.send_signal(signal.SIGCONT)
        await running.until_serving(address, other.address)


async def test_a_drafter_that_is_stopped_costs_only_speed_and_is_left(folder: Path) -> None:
    """Whether its coordinator takes notice of its silence or not, and whether that comes in mid-stream or before."""
    async with (
        worker(load_tiny(folder)) as verify,
        worker_process("draft_service", folder) as (process, address),
        coordinator(verify.address, address, silence_seconds=SILENCE_SECONDS) as running,
        coordinator(verify.address, address) as trusting,
    ):
        for each in (running, trusting):
            await each.until_serving(verify.address, address)
        expected = await ask(running.client, PROMPT, **LONG, speculate=False)
        answer = await until_stopped(running, process)
        assert answer.token_ids == expected.token_ids
        assert (await ask(trusting.client, PROMPT, **LONG)).token_ids == expected.token_ids
        process.send_signal(signal.SIGCONT)


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
