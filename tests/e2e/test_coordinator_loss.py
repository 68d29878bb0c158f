"""Coordinators are lost in mid-stream, by SIGSTOP and by SIGKILL: every client gets the tokens that it would have."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from outrider.client import Answer, Event, GenerationClient, Started, Tokens, gather
from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job
from tests.e2e.stack import coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("forked")

PROMPT = [1, 2, 3]
NUM_TOKENS = 200
MAX_DRAFT_TOKENS = 4


class HeldEngine(Engine):
    """Takes steps freely, or one for each that it is given."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._is_free = True
        self._may_step = threading.Event()
        self._may_step.set()
        super().__init__(*arguments, **settings)

    def hold(self) -> None:
        self._is_free = False
        self._may_step.clear()

    def let_one(self) -> None:
        self._may_step.set()

    def free(self) -> None:
        self._is_free = True
        self._may_step.set()

    def step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        self._may_step.wait()
        if not self._is_free:
            self._may_step.clear()
        return super().step(jobs, max_line_tokens)


@dataclass(frozen=True)
class CoordinatorProcess:
    process: asyncio.subprocess.Process
    address: str
    http: str


@asynccontextmanager
async def coordinator_process(verify: str, draft: str) -> AsyncIterator[CoordinatorProcess]:
    """One that knows both workers."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coordinator", f"--verify={verify}", f"--draft={draft}"),
        *("--listen=127.0.0.1:0", "--http=127.0.0.1:0", f"--max-draft-tokens={MAX_DRAFT_TOKENS}"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    ports: dict[str, int] = {}
    num_workers = 0
    try:
        while num_workers < 2:
            line = await process.stderr.readline()
            assert line, "the coordinator ended"
            told = json.loads(line)
            if "port" in told:
                ports[told["event"]] = told["port"]
            num_workers += told["event"] == "worker found"
        yield CoordinatorProcess(
            process, f"127.0.0.1:{ports['listening']}", f"http://127.0.0.1:{ports['listening for HTTP']}"
        )
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled, with penalties": {
        "sampling": SamplingParams(temperature=1.0, seed=5, repetition_penalty=1.3, presence_penalty=0.5),
        "num_logprobs": 2,
    },
    "completions, with a stop string": {
        "sampling": SamplingParams(temperature=1.5, seed=9),
        "num_completions": 2,
        "stop": ["zz", "??"],
    },
}


NUM_COMPLETIONS = 4
"""Of them together."""


class Stream:
    """One generation, and how far it has come."""

    def __init__(self, client: GenerationClient, request: dict[str, Any]) -> None:
        self.num_started = 0
        self.lengths: dict[int, int] = {}
        """Of the completions that have begun."""
        self.answering = asyncio.create_task(self._answer(client, request))

    async def _answer(self, client: GenerationClient, request: dict[str, Any]) -> Answer:
        def watch(event: Event) -> None:
            self.num_started += isinstance(event, Started)
            if isinstance(event, Tokens):
                self.lengths[event.completion] = event.position + len(event.tokens)

        return await gather(client.generate(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True, **request), watch)


def told(answer: Answer) -> list[tuple[object, ...]]:
    """What must not depend on who wrote it."""
    return [
        (
            completion.token_ids,
            completion.text,
            completion.seed,
            completion.finished.reason,
            completion.finished.usage.num_generated_tokens,
            [(round(each.logprob, 3), each.top_token_ids) for each in completion.logprobs],
        )
        for completion in answer.completions
    ]


async def listen(url: str, chunks: list[dict[str, Any]], last_event_id: str = "") -> str:
    """Adds what comes of a stream by HTTP until it breaks, or ends. Returns the last event's id."""
    body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": 3}
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    async with httpx.AsyncClient(timeout=60) as client:
        try:
            async with client.stream(
                "POST", f"{url}/v1/completions", json=body | {"stream": True, "return_token_ids": True}, headers=headers
            ) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("id: "):
                        last_event_id = line.removeprefix("id: ")
                    elif line.startswith("data: {"):
                        chunks.append(json.loads(line.removeprefix("data: ")))
        except httpx.HTTPError:
            pass
    return last_event_id


@pytest.mark.timeout(120)
async def test_the_tokens_are_those_of_an_undisturbed_stream(tmp_path: Path) -> None:
    folder = save_tiny(build("llama", layers=2), tmp_path / "target")
    engine = HeldEngine(build("llama", layers=2), max_sessions=32, max_context=256)
    draft = load_tiny(save_tiny(build("llama", layers=1), tmp_path / "draft"), max_sessions=32)
    async with AsyncExitStack() as stack:
        verify = (await stack.enter_async_context(worker(replace(load_tiny(folder), engine=engine)))).address
        drafter = (await stack.enter_async_context(worker(draft, draft=True))).address
        stack.callback(engine.free)
        undisturbed = await stack.enter_async_context(coordinator(verify, drafter, max_draft_tokens=MAX_DRAFT_TOKENS))
        frozen, killed, last = await asyncio.gather(
            *(stack.enter_async_context(coordinator_process(verify, drafter)) for _ in range(3))
        )
        expected = {
            name: told(await Stream(undisturbed.client, request).answering) for name, request in REQUESTS.items()
        }
        sampled = {"sampling": SamplingParams(temperature=1.0, seed=3)}
        ((expected_by_http, *_),) = told(await Stream(undisturbed.client, sampled).answering)
        client = await stack.enter_async_context(GenerationClient([frozen.address, killed.address, last.address]))
        asking = await stack.enter_async_context(GenerationClient(killed.address))

        async def step_until(holds: Callable[[int], bool]) -> None:
            """Lets the target step as long as the coordinator that will be killed runs another number of sessions."""
            while not holds((await asking.server_info()).num_running):
                engine.let_one()

        engine.hold()
        streams = [Stream(client, request) for request in REQUESTS.values()]
        await step_until(lambda _: all(each.lengths for each in streams))
        frozen.process.send_signal(signal.SIGSTOP)
        await step_until(lambda num_running: num_running == NUM_COMPLETIONS)
        before = [dict(each.lengths) for each in streams]
        await step_until(
            lambda _: all(each.lengths[0] > lengths[0] for each, lengths in zip(streams, before, strict=True))
        )

        by_command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outrider.cli", "generate", "--token-ids", ",".join(map(str, PROMPT)), "--json"),
            *("--max-tokens", str(NUM_TOKENS), "--ignore-eos", "--address", f"{killed.address},{last.address}"),
            stdout=asyncio.subprocess.PIPE,
        )
        chunks: list[dict[str, Any]] = []
        by_http = asyncio.create_task(listen(killed.http, chunks))
        while (await asking.server_info()).num_running < NUM_COMPLETIONS + 2:
            assert by_command.returncode is None
        await step_until(lambda _: bool(chunks))
        assert not any(each.answering.done() for each in streams)
        killed.process.kill()
        engine.free()

        answers = [told(await each.answering) for each in streams]
        assert answers == list(expected.values())
        assert {each.num_started for each in streams} == {1}
        out, _ = await by_command.communicate()
        assert tuple(json.loads(out)["token_ids"]) == expected["greedy"][0][0]
        event_id = await by_http
        assert chunks[-1]["choices"][0]["finish_reason"] is None, "it was cut"
        await listen(last.http, chunks, event_id)
        assert [each for chunk in chunks for each in chunk["choices"][0]["token_ids"]] == list(expected_by_http)
