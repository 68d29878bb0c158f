"""A verify service with a drafter of its own writes what the target alone writes, and leaves alone what is not its."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from bench.rivals.fixed_depth import FixedDepth
from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.schedule.draft_depth import DraftDepth
from outrider.engine.jobs import Job
from tests.e2e.answers import ask
from tests.e2e.stack import RunningWorker, Stack, bundled, coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build
from verify_service.drafting_verifier import DraftingVerifier
from verify_service.own_drafter import own_drafter
from verify_service.servicer import VerifyServicer

PROMPTS = ("def main(args):\n    ", "import os\n\nclass Path:\n    def __init__(self", "for key, value in")
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=5)


def verifier_of(running: RunningWorker, num_levels: int | None = None) -> DraftingVerifier:
    """The verifier of a worker, which is to draft so many levels, whether that is worth it or not."""
    assert isinstance(running.servicer, VerifyServicer)
    verifier = running.servicer._verifier
    assert isinstance(verifier, DraftingVerifier)
    if num_levels is not None:
        verifier.depth = FixedDepth(num_levels)
    return verifier


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def verify() -> AsyncIterator[RunningWorker]:
    async with worker(replace(bundled("target"), beside=bundled("draft"))) as running:
        verifier_of(running, 3)
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def own(verify: RunningWorker) -> AsyncIterator[Stack]:
    async with coordinator(verify.address, "") as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("sampling", [SamplingParams(), replace(SAMPLED, repetition_penalty=1.0), SAMPLED], ids=str)
async def test_answers_are_the_targets_own(own: Stack, sampling: SamplingParams) -> None:
    arguments = {"sampling": sampling, "max_tokens": 48, "num_logprobs": 2}
    alone = [await ask(own.client, prompt, **arguments, speculate=False) for prompt in PROMPTS]
    one_by_one = [await ask(own.client, prompt, **arguments) for prompt in PROMPTS]
    together = await asyncio.gather(*(ask(own.client, prompt, **arguments) for prompt in PROMPTS))
    for expected, *others in zip(alone, one_by_one, together, strict=True):
        assert expected.finished.speculation.num_draft_tokens == 0
        for answer in others:
            assert answer.token_ids == expected.token_ids
            assert answer.finished.reason is expected.finished.reason
    accepted = [answer.finished.speculation.num_accepted_tokens for answer in (*one_by_one, *together)]
    looked_up = [answer.finished.speculation.num_accepted_prompt_lookup_tokens for answer in (*one_by_one, *together)]
    assert sum(accepted) > sum(looked_up)


@pytest.mark.asyncio(loop_scope="module")
async def test_answers_are_the_targets_own_whatever_pays(verify: RunningWorker, own: Stack) -> None:
    """With the number of levels that this machine's times make the best."""
    verifier = verifier_of(verify)
    fixed, verifier.depth = verifier.depth, DraftDepth()
    verifier.depth.foresee(verifier.drafter.scheduler.policy.estimates.curve, verifier.scheduler.policy.estimates.curve)
    arguments = {"sampling": SAMPLED, "max_tokens": 48}
    alone = [await ask(own.client, prompt, **arguments, speculate=False) for prompt in PROMPTS]
    together = await asyncio.gather(*(ask(own.client, prompt, **arguments) for prompt in PROMPTS))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    verifier.depth = fixed


@pytest.mark.asyncio(loop_scope="module")
async def test_guesses_stay_within_a_grammar(own: Stack) -> None:
    grammar = Grammar(GrammarKind.REGEX, "[a-z]{3} = [0-9]{12}, [0-9]{12}")
    arguments = {"sampling": SamplingParams(grammar=grammar), "max_tokens": 48}
    alone = await ask(own.client, PROMPTS[0], **arguments, speculate=False)
    assert (await ask(own.client, PROMPTS[0], **arguments)).text == alone.text


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_is_left_when_sessions_have_ended(own: Stack, verify: RunningWorker) -> None:
    answers = [ask(own.client, prompt, max_tokens=200, sampling=SAMPLED) for prompt in PROMPTS]
    asked = [asyncio.ensure_future(each) for each in answers]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert done
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    await verify.all_slots_free()
    assert await ask(own.client, PROMPTS[0], max_tokens=4)
    await verify.all_slots_free()
    drafter = verifier_of(verify).drafter
    assert not drafter.scheduler.sessions
    assert drafter.runner.engine.num_free_slots == drafter.runner.engine.max_sessions


async def test_a_draft_model_that_fails_costs_drafts_and_no_answer(tmp_path: Path) -> None:
    target, draft = (load_tiny(save_tiny(build("llama"), tmp_path / name)) for name in ("target", "draft"))
    arguments = {"max_tokens": 40, "sampling": SAMPLED, "ignore_eos": True}

    def fails(jobs: list[Job], max_line_tokens: int) -> None:
        raise RuntimeError("as if it had run out of memory")

    async with worker(replace(target, beside=draft)) as verify, coordinator(verify.address, "") as running:
        verifier_of(verify, 2)
        alone = await ask(running.client, [1, 2, 3], **arguments, speculate=False)
        whole = await ask(running.client, [1, 2, 3], **arguments)
        verifier_of(verify).drafter.runner.launch = fails  # pyright: ignore
        broken = await ask(running.client, [1, 2, 3], **arguments)
    assert alone.token_ids == whole.token_ids == broken.token_ids
    assert whole.finished.speculation.num_rounds < alone.finished.speculation.num_rounds


async def test_a_session_with_a_drafter_elsewhere_is_left_to_that(tmp_path: Path) -> None:
    target, draft, other = (
        load_tiny(save_tiny(build("llama"), tmp_path / name)) for name in ("target", "draft", "other")
    )
    async with (
        worker(replace(target, beside=draft)) as verify,
        worker(other, draft=True) as drafter,
        coordinator(verify.address, drafter.address) as running,
    ):
        opened: list[object] = []
        verifier = verifier_of(verify, 2)
        open_session = verifier.drafter.open
        verifier.drafter.open = lambda session: (opened.append(session), open_session(session))[1]  # pyright: ignore
        arguments = {"max_tokens": 40, "sampling": SAMPLED, "ignore_eos": True}
        alone = await ask(running.client, [1, 2, 3], **arguments, speculate=False)
        apart = await ask(running.client, [1, 2, 3], **arguments)
        assert apart.finished.speculation.num_drafted_nodes > 0
        assert not opened
        await drafter.server.stop(None)
        await running.until_serving(verify.address)
        lone = await ask(running.client, [1, 2, 3], **arguments)
        assert opened
    assert alone.token_ids == apart.token_ids == lone.token_ids


def test_a_draft_model_of_another_tokenizer_is_refused() -> None:
    draft = bundled("draft")
    other = bundled("target").info._replace(tokenizer_sha256="other")
    with pytest.raises(UnsupportedModelError, match="another tokenizer"):
        own_drafter(draft, other, lambda engine: pytest.fail("it is not begun"))
