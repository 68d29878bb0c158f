"""A verifier that recalls recent answers: the target's tokens all the same, in fewer rounds the second time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import Answer, ask
from tests.e2e.stack import Stack, bundled, coordinator, worker

PROMPT = "class Place:\n    def __init__(self, path, name):\n"
NUM_TOKENS = 40

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def recalling() -> AsyncIterator[Stack]:
    """A verifier without any drafter, all of whose sessions share their answers."""
    async with (
        worker(bundled("target"), recent_answers="all") as verify,
        coordinator(verify.address, "") as stack,
    ):
        yield stack


async def answered(stack: Stack, sampling: SamplingParams, **more: bool) -> Answer:
    return await ask(stack.client, PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True, sampling=sampling, **more)


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=0.8, seed=4)])
async def test_the_text_is_the_targets_and_comes_sooner_when_it_comes_again(
    recalling: Stack, sampling: SamplingParams
) -> None:
    plain = await answered(recalling, sampling, speculate=False)
    for _ in range(2):
        again = await answered(recalling, sampling)
        assert again.token_ids == plain.token_ids
    found = again.finished.speculation
    assert found.num_rounds < NUM_TOKENS / 3
    assert found.num_prompt_lookup_tokens == found.num_draft_tokens > 0


async def test_what_was_answered_otherwise_is_no_answer(recalling: Stack) -> None:
    """What is recalled is wrong at the first token that another seed chooses."""
    for seed in range(5, 8):
        sampling = SamplingParams(temperature=0.8, seed=seed)
        plain = await answered(recalling, sampling, speculate=False)
        assert (await answered(recalling, sampling)).token_ids == plain.token_ids
