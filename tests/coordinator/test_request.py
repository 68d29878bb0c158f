"""A request settled: every default filled in, every bound checked, whichever door it came by."""

from __future__ import annotations

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.request import MAX_TOKENS_DEFAULT, settle
from coordinator.tokenizer import TargetTokenizer
from outrider.core.protocol.errors import InvalidRequestError
from outrider.core.protocol.messages import ModelInfo
from outrider.core.protocol.options import DEFAULT_OPTIONS, GenerationOptions, Prompt
from outrider.core.protocol.sampling import SamplingParams

from .script import TARGET, letters

TOKENIZER = TargetTokenizer(letters())
CONFIG = CoordinatorConfig(max_draft_tokens=7, tree_width=3, max_requests=4)  # pyright: ignore[reportCallIssue]


async def fields_refused(prompt: Prompt, options: GenerationOptions) -> list[str]:
    with pytest.raises(InvalidRequestError) as refused:
        await settle(prompt, options, CONFIG, TARGET, TOKENIZER)
    return [violation.field for violation in refused.value.violations]


async def test_defaults_are_the_coordinators() -> None:
    request = await settle([1, 2, 3], DEFAULT_OPTIONS, CONFIG, TARGET, TOKENIZER)
    assert request.max_length == TARGET.max_context, "what the context leaves is less than the default"
    assert (request.max_draft_tokens, request.tree_width, request.num_completions) == (7, 3, 1)
    assert request.speculate
    large = TARGET._replace(max_context=4096)
    assert (await settle([1], DEFAULT_OPTIONS, CONFIG, large, TOKENIZER)).max_length == 1 + MAX_TOKENS_DEFAULT


async def test_a_text_is_read_by_the_targets_tokenizer() -> None:
    request = await settle("b", DEFAULT_OPTIONS, CONFIG, TARGET, TOKENIZER)
    assert list(request.prompt_token_ids) == [1]


async def test_a_seed_is_drawn_if_that_is_wanted_and_kept_if_not() -> None:
    drawn = GenerationOptions(sampling=SamplingParams(temperature=1.0, seed=5), draw_seed=True)
    seeds = {(await settle([1], drawn, CONFIG, TARGET, TOKENIZER)).sampling.seed for _ in range(4)}
    assert len(seeds) > 1
    kept = await settle([1], GenerationOptions(sampling=SamplingParams(seed=5)), CONFIG, TARGET, TOKENIZER)
    assert kept.sampling.seed == 5


async def test_each_completion_has_a_seed_of_its_own() -> None:
    options = GenerationOptions(sampling=SamplingParams(seed=2**64 - 1), num_completions=3)
    request = await settle([1], options, CONFIG, TARGET, TOKENIZER)
    completions = [request.completion(number) for number in range(3)]
    assert [each.sampling.seed for each in completions] == [2**64 - 1, 0, 1]
    assert {each.num_completions for each in completions} == {1}


async def test_no_draft_tokens_means_no_speculation() -> None:
    assert not (await settle([1], GenerationOptions(max_draft_tokens=0), CONFIG, TARGET, TOKENIZER)).speculate
    assert not (await settle([1], GenerationOptions(speculate=False), CONFIG, TARGET, TOKENIZER)).speculate


@pytest.mark.parametrize(
    ("prompt", "options", "fields"),
    [
        ("", DEFAULT_OPTIONS, ["text"]),
        ([], DEFAULT_OPTIONS, ["token_ids.ids"]),
        ([26], DEFAULT_OPTIONS, ["token_ids.ids"]),
        ([-1], DEFAULT_OPTIONS, ["token_ids.ids"]),
        ([1], GenerationOptions(max_tokens=0), ["max_tokens"]),
        ([1], GenerationOptions(max_tokens=-5), ["max_tokens"]),
        ([1], GenerationOptions(max_tokens=64), ["max_tokens"]),
        ([1], GenerationOptions(stop=("",)), ["stop"]),
        ([1], GenerationOptions(stop_token_ids=(-1,)), ["stop_token_ids"]),
        ([1], GenerationOptions(num_logprobs=-1), ["num_logprobs"]),
        ([1], GenerationOptions(max_draft_tokens=8), ["speculation.max_draft_tokens"]),
        ([1], GenerationOptions(max_draft_tokens=-1), ["speculation.max_draft_tokens"]),
        ([1], GenerationOptions(tree_width=-1), ["speculation.tree_width"]),
        ([1], GenerationOptions(num_completions=5), ["num_completions"]),
        ([1], GenerationOptions(num_completions=0), ["num_completions"]),
        ([1], GenerationOptions(sampling=SamplingParams(seed=-1)), ["sampling.seed"]),
        ([1], GenerationOptions(max_tokens=0, tree_width=99), ["max_tokens", "speculation.tree_width"]),
    ],
)
async def test_what_breaks_a_bound_is_named(prompt: Prompt, options: GenerationOptions, fields: list[str]) -> None:
    assert await fields_refused(prompt, options) == fields


async def test_a_prompt_that_fills_the_context_is_refused_once() -> None:
    full: ModelInfo = TARGET
    assert await fields_refused([1] * full.max_context, DEFAULT_OPTIONS) == ["token_ids.ids"]
