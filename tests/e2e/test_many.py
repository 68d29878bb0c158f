"""Many at once: each request gets what it would have got alone, and nothing of them is left behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from outrider.client import FinishReason, GenerationClient, GenerationMode, Tokens
from outrider.core.protocol.errors import OutriderError, SlotsExhaustedError
from outrider.core.protocol.messages import WorkerLoad
from outrider.core.protocol.sampling import SamplingParams
from outrider.rpc.channels import open_channel
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE, WorkerClient
from tests.e2e.answers import Answer, ask, ask_all
from tests.e2e.stack import RunningWorker, Stack, coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import VOCAB_SIZE, build

NUM_REQUESTS = 36
NUM_SESSIONS = 200
NUM_CLIENTS = 48
"""More than the small verifier can hold and keep waiting together."""
MAX_QUEUE = 12
MAX_CONTEXT = 128
KV_MEMORY = "200kB"
"""Room for some six of the lines below in blocks of 16 tokens."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The draft is the target with some noise on its weights: it is right more often than not, and not always."""
    root = tmp_path_factory.mktemp("tiny")
    draft = build("llama", layers=2)
    torch.manual_seed(9)
    with torch.no_grad():
        for weights in draft.parameters():
            weights.add_(torch.randn_like(weights), alpha=0.01)
    return save_tiny(build("llama", layers=2), root / "target"), save_tiny(draft, root / "draft")


@asynccontextmanager
async def services(
    folders: tuple[Path, Path], *, max_queue: int = 0, **settings: Any
) -> AsyncIterator[tuple[Stack, RunningWorker, RunningWorker]]:
    """All three; `settings` are the verifier's."""
    async with AsyncExitStack() as running:
        target = load_tiny(folders[0], **settings)
        verify = await running.enter_async_context(worker(target, max_queue=max_queue))
        draft = await running.enter_async_context(worker(load_tiny(folders[1]), draft=True))
        coordinate = await running.enter_async_context(
            coordinator(verify.address, draft.address, max_requests=2 * NUM_REQUESTS)
        )
        yield coordinate, verify, draft


def mixed_requests() -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Prompts of different lengths, some with a beginning in common, asked for in every way that there is."""
    probability = random.Random(4)
    common = [probability.randrange(1, VOCAB_SIZE) for _ in range(80)]
    ways: list[dict[str, Any]] = [
        {},
        {"sampling": SamplingParams(temperature=0.8, top_p=0.9)},
        {"sampling": SamplingParams(temperature=1.2, top_k=20, repetition_penalty=1.2, frequency_penalty=0.3)},
        {"sampling": SamplingParams(temperature=1.0), "num_completions": 3},
        {"sampling": SamplingParams(temperature=1.0), "stop": ["A", "7", "Z"]},
        {"sampling": SamplingParams(temperature=0.9), "num_logprobs": 3},
        {"sampling": SamplingParams(temperature=0.9), "speculate": False},
        {"sampling": SamplingParams(temperature=0.9), "tree_width": 1, "max_draft_tokens": 3},
        {"num_logprobs": 0, "stop_token_ids": [*range(5, 15)], "num_completions": 2},
    ]
    commons = (0, 16, 33, 80)
    assert len(ways) * len(commons) == NUM_REQUESTS, "each way meets each length of the common beginning"
    for number in range(NUM_REQUESTS):
        arguments = {**ways[number % len(ways)], "max_tokens": probability.randrange(8, 48)}
        if "sampling" in arguments:
            arguments["sampling"] = replace(arguments["sampling"], seed=probability.randrange(2**64))
        own = [probability.randrange(1, VOCAB_SIZE) for _ in range(probability.randrange(1, 40))]
        yield common[: commons[number // len(ways)]] + own, arguments


def told(answer: Answer) -> tuple[object, ...]:
    """What must not depend on the company."""
    return answer.token_ids, answer.text, answer.finished.reason, answer.started.seed


def logprobs(answer: Answer) -> list[float]:
    tokens = [token for tokens in answer.rounds for token in tokens.tokens]
    return [
        value for token in tokens if token.logprobs for value in (token.logprobs.logprob, *token.logprobs.top_logprobs)
    ]


async def test_in_company_each_request_gets_what_it_gets_alone(folders: tuple[Path, Path]) -> None:
    requests = list(mixed_requests())
    async with services(folders, max_queue=NUM_REQUESTS, max_sessions=32) as (running, verify, draft):
        alone = [await ask_all(running.client, prompt, **arguments) for prompt, arguments in requests]
        together = await asyncio.gather(
            *(ask_all(running.client, prompt, **arguments) for prompt, arguments in requests)
        )
        for ours, theirs, (prompt, arguments) in zip(together, alone, requests, strict=True):
            assert [told(answer) for answer in ours] == [told(answer) for answer in theirs], (prompt, arguments)
            for answer, other in zip(ours, theirs, strict=True):
                assert logprobs(answer) == pytest.approx(logprobs(other), abs=1e-4)
        answers = [answer for each in together for answer in each]
        assert {answer.finished.reason for answer in answers} == {
            FinishReason.LENGTH,
            FinishReason.EOS,
            FinishReason.STOP_STRING,
            FinishReason.STOP_TOKEN,
        }
        assert GenerationMode.SPECULATIVE in {answer.finished.mode for answer in answers}
        everything = [*answers, *(answer for each in alone for answer in each)]
        assert sum(answer.finished.speculation.num_accepted_tokens for answer in everything) > 0
        await idle(verify, VERIFY_SERVICE)
        await idle(draft, DRAFT_SERVICE)


async def idle(running: RunningWorker, service: str) -> WorkerLoad:
    """Returns the worker's load once no session is left; runs into the test's timeout if one stays."""
    async with open_channel(running.address) as channel:
        async for load in WorkerClient(channel, service).watch_load():
            if load.num_sessions == load.num_queued == 0 and load.num_free_kv_tokens == load.num_kv_tokens:
                return load
    raise AssertionError("the worker ended the stream")


class Crowd:
    """Clients that send one short request after another, and come again when they are refused."""

    def __init__(self, client: GenerationClient) -> None:
        self._client = client
        self._numbers = iter(range(NUM_SESSIONS))
        self._changed = asyncio.Condition()
        self._num_running = 0
        self._num_ended = 0
        self.answers: dict[int, list[int]] = {}
        self.refusals: list[OutriderError] = []
        self.num_left = 0

    async def run(self) -> None:
        """One client."""
        for number in self._numbers:
            while True:
                num_ended = self._num_ended
                self._num_running += 1
                served = await self._is_served(number)
                async with self._changed:
                    self._num_running -= 1
                    self._num_ended += served
                    self._changed.notify_all()
                    if served:
                        break
                    # There is room once another's session has ended, or if nobody is left.
                    await self._changed.wait_for(lambda seen=num_ended: self._num_ended > seen or not self._num_running)

    async def _is_served(self, number: int) -> bool:
        token_ids: list[int] = []
        prompt, arguments = short_request(number)
        events = self._client.generate(prompt, **arguments)
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Tokens):
                        token_ids.extend(token.token_id for token in event.tokens)
                        if number % 10 == 9 and len(token_ids) > 2:
                            self.num_left += 1
                            return True
        except SlotsExhaustedError as refusal:
            self.refusals.append(refusal)
            return False
        self.answers[number] = token_ids
        return True


def short_request(number: int) -> tuple[list[int], dict[str, Any]]:
    prompt = [*range(1, 1 + 20 * (number % 3)), 1 + number % (VOCAB_SIZE - 1), 7]
    sampling = SamplingParams(temperature=0.9 * (number % 2), seed=number)
    return prompt, {"sampling": sampling, "max_tokens": 6 + number % 13, "ignore_eos": True}


def retry_info(refusal: OutriderError) -> error_details_pb2.RetryInfo | None:
    """What the status behind an error says about trying again."""
    assert isinstance(refusal.__cause__, grpc.aio.AioRpcError)
    assert refusal.__cause__.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = error_details_pb2.RetryInfo()
    details = rpc_status.from_call(refusal.__cause__).details  # pyright: ignore[reportArgumentType]
    return found if any(detail.Unpack(found) for detail in details) else None


async def test_hundreds_of_sessions_pass_through_a_small_verifier(folders: tuple[Path, Path]) -> None:
    async with services(
        folders, max_queue=MAX_QUEUE, kv_memory=KV_MEMORY, max_context=MAX_CONTEXT, max_sessions=NUM_CLIENTS
    ) as (running, verify, draft):
        for _ in range(3):
            await ask(running.client, [1, 2], max_tokens=4)
        await idle(verify, VERIFY_SERVICE)
        num_tasks = len(asyncio.all_tasks())
        crowd = Crowd(running.client)
        async with asyncio.TaskGroup() as clients:
            for _ in range(NUM_CLIENTS):
                clients.create_task(crowd.run())
        assert crowd.num_left > 0
        assert len(crowd.answers) + crowd.num_left == NUM_SESSIONS
        assert crowd.refusals
        assert all((info := retry_info(refusal)) and info.retry_delay.seconds for refusal in crowd.refusals)

        load = await idle(verify, VERIFY_SERVICE)
        assert 0 < load.num_cached_prompt_tokens < load.num_prompt_tokens
        await idle(draft, DRAFT_SERVICE)
        await verify.all_slots_free()
        await draft.all_slots_free()
        assert (await running.client.server_info()).num_running == 0
        while len(asyncio.all_tasks()) > num_tasks:  # cancelled handlers end on their own; a leak runs into the timeout
            await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=0.1)
        for number in list(crowd.answers)[:: len(crowd.answers) // 20]:
            prompt, arguments = short_request(number)
            alone = await ask(running.client, prompt, **arguments)
            assert crowd.answers[number] == alone.token_ids
