"""The coordinator's service in plain values: what another door than gRPC would stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import NamedTuple

import pytest

from outrider.client import Event, Finished, GenerationOptions, Started, Tokens
from outrider.core.protocol.errors import InvalidRequestError
from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask
from tests.e2e.stack import RunningWorker, Stack, coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build

PROMPT = [1, 2, 3]


class Running(NamedTuple):
    """All three services in this process."""

    stack: Stack
    verify: RunningWorker
    draft: RunningWorker


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        target = load_tiny(save_tiny(build("llama", layers=2), tmp_path / "target"))
        draft = load_tiny(save_tiny(build("llama", layers=1), tmp_path / "draft"))
        verify = await stack.enter_async_context(worker(target))
        drafter = await stack.enter_async_context(worker(draft, draft=True))
        found = await stack.enter_async_context(coordinator(verify.address, drafter.address))
        yield Running(found, verify, drafter)


async def test_its_events_are_those_that_the_client_sees(running: Running) -> None:
    sampling = SamplingParams(temperature=0.8, seed=11)
    options = GenerationOptions(sampling=sampling, max_tokens=20, ignore_eos=True, num_logprobs=2)
    events: list[Event] = [event async for event in running.stack.service.generate(PROMPT, options)]
    answer = await ask(running.stack.client, PROMPT, sampling=sampling, max_tokens=20, ignore_eos=True, num_logprobs=2)
    started, *rounds, finished = events
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    tokens = [token for event in rounds if isinstance(event, Tokens) for token in event.tokens]
    assert [token.token_id for token in tokens] == answer.token_ids
    assert "".join(event.text for event in rounds if isinstance(event, Tokens)) + finished.text == answer.text
    assert (started.seed, started.prompt_token_ids) == (11, tuple(PROMPT))
    assert all(token.logprobs is not None and len(token.logprobs.top_token_ids) == 2 for token in tokens)
    assert (finished.reason, finished.usage.num_generated_tokens) == (answer.finished.reason, 20)


async def test_closing_the_iterator_frees_everything(running: Running) -> None:
    options = GenerationOptions(max_tokens=200, ignore_eos=True, num_completions=2)
    async with aclosing(running.stack.service.generate(PROMPT, options)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                break
        assert running.stack.service.server_info().num_running == 2
    assert running.stack.service.server_info().num_running == 0
    await running.verify.all_slots_free()
    await running.draft.all_slots_free()


async def test_values_that_no_message_could_hold_are_refused_by_their_names(running: Running) -> None:
    options = GenerationOptions(max_tokens=-1, num_logprobs=-1, num_completions=-1)
    with pytest.raises(InvalidRequestError) as refused:
        await anext(running.stack.service.generate(PROMPT, options))
    assert [each.field for each in refused.value.violations] == ["num_logprobs", "max_tokens", "num_completions"]
    assert running.stack.service.server_info().num_running == 0
