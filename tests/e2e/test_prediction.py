"""A prediction of the text: the target's tokens all the same, in fewer rounds, whoever drafts and whoever is lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from outrider.client import Event, Finished, Speculation, Tokens, Usage
from outrider.core.protocol.errors import InvalidRequestError
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import PREDICTION_TOKENS_MAX
from tests.e2e.answers import Answer, ask, ask_all
from tests.e2e.stack import Stack, bundled, coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import build

PROMPT = "import os\n\n\ndef walk(path, depth):\n"
NUM_TOKENS = 64
SAMPLED = SamplingParams(temperature=0.8, seed=4)
SAMPLINGS = [SamplingParams(), SAMPLED]

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Services(NamedTuple):
    """One target, and coordinators with a drafter and without."""

    drafting: Stack
    alone: Stack


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def services() -> AsyncIterator[Services]:
    async with (
        worker(bundled("target")) as verify,
        worker(bundled("draft"), draft=True) as draft,
        coordinator(verify.address, draft.address) as drafting,
        coordinator(verify.address, "") as alone,
    ):
        yield Services(drafting, alone)


@pytest.fixture
def stack(services: Services) -> Stack:
    """Without a drafter: what is scored of a prediction is the verifier's own matter."""
    return services.alone


@pytest.fixture(params=Services._fields)
def each_stack(request: pytest.FixtureRequest, services: Services) -> Stack:
    return getattr(services, request.param)


def arguments(sampling: SamplingParams, **others: Any) -> dict[str, Any]:
    return {"max_tokens": NUM_TOKENS, "ignore_eos": True, "sampling": sampling, **others}


def told(answer: Answer) -> tuple[Speculation, Usage]:
    speculation, usage = answer.finished.speculation, answer.finished.usage
    assert 0 <= speculation.num_accepted_prediction_tokens <= speculation.num_prediction_tokens
    assert speculation.num_prediction_tokens + speculation.num_prompt_lookup_tokens <= speculation.num_draft_tokens
    return speculation, usage


def edited(text: str) -> str:
    """A few words changed."""
    dice = random.Random(1)
    return " ".join("other" if dice.random() < 0.1 else word for word in text.split(" "))


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_a_right_prediction_saves_rounds_and_changes_no_token(
    each_stack: Stack, sampling: SamplingParams
) -> None:
    plain = await ask(each_stack.client, PROMPT, **arguments(sampling))
    predicted = await ask(each_stack.client, PROMPT, **arguments(sampling, prediction=plain.text))
    assert predicted.token_ids == plain.token_ids
    speculation, usage = told(predicted)
    assert speculation.num_rounds < plain.finished.speculation.num_rounds
    # What was drawn may be spelled otherwise than a tokenizer spells it.
    assert usage.num_accepted_prediction_tokens >= (NUM_TOKENS - 3 if sampling.greedy else NUM_TOKENS // 2)
    if sampling.greedy:
        assert usage.num_rejected_prediction_tokens <= 3
    unpredicted = plain.finished.usage
    assert (unpredicted.num_accepted_prediction_tokens, unpredicted.num_rejected_prediction_tokens) == (0, 0)


async def test_a_prediction_with_changed_words_is_found_again(stack: Stack) -> None:
    plain = await ask(stack.client, PROMPT, **arguments(SAMPLED))
    assert edited(plain.text) != plain.text
    predicted = await ask(stack.client, PROMPT, **arguments(SAMPLED, prediction=edited(plain.text)))
    assert predicted.token_ids == plain.token_ids
    speculation, usage = told(predicted)
    assert speculation.num_rounds < plain.finished.speculation.num_rounds
    assert usage.num_accepted_prediction_tokens > NUM_TOKENS // 2
    assert usage.num_rejected_prediction_tokens > 0


async def test_a_useless_prediction_changes_no_token_and_is_hardly_scored(each_stack: Stack) -> None:
    plain = await ask(each_stack.client, PROMPT, **arguments(SAMPLED))
    useless = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 20
    predicted = await ask(each_stack.client, PROMPT, **arguments(SAMPLED, prediction=useless))
    assert predicted.token_ids == plain.token_ids
    speculation, usage = told(predicted)
    assert speculation.num_prediction_tokens <= NUM_TOKENS  # one a round or less, which costs next to nothing
    assert usage.num_accepted_prediction_tokens < 20
    assert usage.num_rejected_prediction_tokens > 200


async def test_several_completions_each_follow_the_prediction(stack: Stack) -> None:
    plain = await ask_all(stack.client, PROMPT, **arguments(SAMPLED, num_completions=3))
    predicted = await ask_all(stack.client, PROMPT, **arguments(SAMPLED, num_completions=3, prediction=plain[1].text))
    assert [answer.token_ids for answer in predicted] == [answer.token_ids for answer in plain]
    usages = [told(answer)[1].num_accepted_prediction_tokens for answer in predicted]
    assert usages[1] == max(usages) >= NUM_TOKENS // 2 > usages[0] + usages[2]


async def test_a_request_that_does_not_speculate_scores_nothing_and_still_tells_what_appeared(stack: Stack) -> None:
    plain = await ask(stack.client, PROMPT, **arguments(SamplingParams(), speculate=False))
    predicted = await ask(stack.client, PROMPT, **arguments(SamplingParams(), speculate=False, prediction=plain.text))
    speculation, usage = told(predicted)
    assert (speculation.num_draft_tokens, speculation.num_prediction_tokens) == (0, 0)
    assert usage.num_accepted_prediction_tokens >= NUM_TOKENS - 3


async def test_a_prediction_that_is_too_long_is_refused_in_words(stack: Stack) -> None:
    with pytest.raises(
        InvalidRequestError, match=rf"speculation.prediction: has \d+ tokens; at most {PREDICTION_TOKENS_MAX}"
    ):
        await ask(stack.client, PROMPT, prediction="one two three " * PREDICTION_TOKENS_MAX)


async def test_another_verifier_goes_on_with_the_prediction(tmp_path: Path, seats: Counter[str]) -> None:
    folder = save_tiny(build("llama", layers=2), tmp_path / "target")
    wanted = arguments(SAMPLED, max_tokens=240)
    async with (
        worker(load_tiny(folder)) as first,
        worker(load_tiny(folder)) as other,
        coordinator(f"{first.address},{other.address}", "") as running,
    ):
        await running.until_serving(first.address, other.address)
        plain = await ask(running.client, [1, 2, 3], **wanted)
        wanted["prediction"] = plain.text
        expected = await ask(running.client, [1, 2, 3], **wanted)
        events: list[Event] = []
        seats.clear()
        async for event in running.client.generate([1, 2, 3], **wanted):
            events.append(event)
            if sum(isinstance(each, Tokens) for each in events) == 1:
                await first.server.stop(None)
        assert (seats[first.address], seats[other.address]) == (1, 1)
    token_ids = [token.token_id for event in events if isinstance(event, Tokens) for token in event.tokens]
    assert token_ids == expected.token_ids == plain.token_ids
    finished = events[-1]
    assert isinstance(finished, Finished)
    told = (finished.usage.num_accepted_prediction_tokens, finished.usage.num_rejected_prediction_tokens)
    usage = expected.finished.usage
    assert told == (usage.num_accepted_prediction_tokens, usage.num_rejected_prediction_tokens)
