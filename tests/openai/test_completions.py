"""Completions by OpenAI's own clients: each parameter, whole and streamed, and the tokens that gRPC gives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask, ask_all
from tests.openai.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="package")

PROMPT = "def add(a, b):\n"
NUM_TOKENS = 12

PARAMETERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"temperature": 0}, {}, {}),
    "OpenAI's default": ({}, {"temperature": 1.0}, {}),
    "temperature": ({"temperature": 0.7}, {"temperature": 0.7}, {}),
    "top_p": ({"top_p": 0.8}, {"temperature": 1.0, "top_p": 0.8}, {}),
    "top_k": ({"extra_body": {"top_k": 3}}, {"temperature": 1.0, "top_k": 3}, {}),
    "vLLM's top_k for all": ({"extra_body": {"top_k": -1}}, {"temperature": 1.0}, {}),
    "min_p": ({"extra_body": {"min_p": 0.2}}, {"temperature": 1.0, "min_p": 0.2}, {}),
    "penalties": (
        {"presence_penalty": 0.5, "frequency_penalty": 0.3, "extra_body": {"repetition_penalty": 1.2}},
        {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2},
        {},
    ),
    "logit_bias": ({"temperature": 0, "logit_bias": {"10": 100}}, {"logit_bias": ((10, 100.0),)}, {}),
    "stop": ({"temperature": 0, "stop": ["return", "\n\n"]}, {}, {"stop": ["return", "\n\n"]}),
    "one stop": ({"temperature": 0, "stop": ":"}, {}, {"stop": [":"]}),
    "ignore_eos": ({"temperature": 0, "extra_body": {"ignore_eos": True}}, {}, {"ignore_eos": True}),
    "no speculation": ({"extra_body": {"speculation": {"enabled": False}}}, {"temperature": 1.0}, {}),
    "a chain": (
        {"extra_body": {"speculation": {"max_draft_tokens": 3, "tree_width": 1}}},
        {"temperature": 1.0},
        {"max_draft_tokens": 3, "tree_width": 1},
    ),
}  # fmt: skip
"""By HTTP, and by gRPC: sampling and other options."""


@pytest.mark.parametrize("name", PARAMETERS)
async def test_tokens_are_those_of_grpc(served: Served, client: AsyncOpenAI, name: str) -> None:
    by_http, sampling, options = PARAMETERS[name]
    extra = {**by_http.get("extra_body", {}), "return_token_ids": True}
    asked: dict[str, Any] = {"model": "target", "prompt": PROMPT, "seed": 5, "max_tokens": NUM_TOKENS}
    asked |= {**by_http, "extra_body": extra}

    async def streamed() -> list[Completion]:
        return [chunk async for chunk in await client.completions.create(**asked, stream=True)]

    whole, chunks, expected = await asyncio.gather(
        client.completions.create(**asked),
        streamed(),
        ask(
            served.stack.client,
            PROMPT,
            sampling=SamplingParams(seed=5, **sampling),
            max_tokens=NUM_TOKENS,
            speculate="enabled" not in by_http.get("extra_body", {}).get("speculation", {}),
            **options,
        ),
    )
    (choice,) = whole.choices
    assert choice.model_extra is not None
    assert choice.model_extra["token_ids"] == expected.token_ids
    assert choice.model_extra["prompt_token_ids"] == list(expected.started.prompt_token_ids)
    assert choice.text == expected.text
    assert choice.finish_reason == ("length" if expected.finished.reason.name == "LENGTH" else "stop")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(expected.token_ids)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    token_ids = [token_id for chunk in chunks for token_id in (chunk.choices[0].model_extra or {})["token_ids"]]
    assert token_ids == expected.token_ids
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [choice.finish_reason]
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stop_token_ends_a_choice(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "target", "prompt": PROMPT, "temperature": 0, "max_tokens": NUM_TOKENS}
    (choice,) = (await client.completions.create(**asked, extra_body={"return_token_ids": True})).choices
    token_ids = (choice.model_extra or {})["token_ids"]
    extra = {"return_token_ids": True, "stop_token_ids": [token_ids[4]]}
    (shorter,) = (await client.completions.create(**asked, extra_body=extra)).choices
    end = token_ids.index(token_ids[4]) + 1
    assert ((shorter.model_extra or {})["token_ids"], shorter.finish_reason) == (token_ids[:end], "stop")


async def test_prompts_in_every_form_and_several_choices_of_each(served: Served, client: AsyncOpenAI) -> None:
    token_ids = await served.stack.service.tokenize(PROMPT)
    other_ids = await served.stack.service.tokenize("class")
    prompts: list[Any] = [[PROMPT, "class"], [token_ids, other_ids]]
    expected = [
        answer.text
        for prompt in (PROMPT, "class")
        for answer in await ask_all(
            served.stack.client,
            prompt,
            sampling=SamplingParams(temperature=1.0, seed=3),
            max_tokens=NUM_TOKENS,
            num_completions=2,
        )
    ]
    for prompt in prompts:
        whole = await client.completions.create(model="target", prompt=prompt, n=2, seed=3, max_tokens=NUM_TOKENS)
        assert [choice.text for choice in whole.choices] == expected
        assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
        assert [(choice.model_extra or {})["seed"] for choice in whole.choices] == [3, 4, 3, 4]
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == len(token_ids) + len(other_ids)
        assert whole.usage.completion_tokens == 4 * NUM_TOKENS
    streamed = ["", "", "", ""]
    stream = await client.completions.create(
        model="target",
        prompt=prompts[0],
        n=2,
        seed=3,
        max_tokens=NUM_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4 * NUM_TOKENS


async def test_log_probabilities_are_those_of_grpc(served: Served, client: AsyncOpenAI) -> None:
    sampling = SamplingParams(temperature=1.0, seed=9)
    expected = await ask(served.stack.client, PROMPT, sampling=sampling, max_tokens=NUM_TOKENS, num_logprobs=2)
    told = [token.logprobs for tokens in expected.rounds for token in tokens.tokens]
    asked: dict[str, Any] = {"model": "target", "prompt": PROMPT, "seed": 9, "max_tokens": NUM_TOKENS, "logprobs": 2}
    (choice,) = (await client.completions.create(**asked)).choices
    streamed = [chunk.choices[0].logprobs async for chunk in await client.completions.create(**asked, stream=True)]
    for found in ([choice.logprobs], streamed):
        token_logprobs = [each for part in found if part is not None for each in part.token_logprobs or ()]
        assert token_logprobs == pytest.approx([each.logprob for each in told if each is not None])
        tops = [each for part in found if part is not None for each in part.top_logprobs or ()]
        assert all(2 <= len(top) <= 3 for top in tops)
        offsets = [each for part in found if part is not None for each in part.text_offset or ()]
        assert offsets == sorted(offsets)
        assert len(offsets) == NUM_TOKENS


async def test_echo_puts_the_prompt_in_front(served: Served, client: AsyncOpenAI) -> None:
    token_ids = await served.stack.service.tokenize(PROMPT)
    asked: dict[str, Any] = {"model": "target", "temperature": 0, "max_tokens": 4}
    (alone,) = (await client.completions.create(**asked, prompt=PROMPT)).choices
    for prompt in (PROMPT, token_ids):
        (choice,) = (await client.completions.create(**asked, prompt=prompt, echo=True)).choices
        assert choice.text == PROMPT + alone.text
        stream = await client.completions.create(**asked, prompt=prompt, echo=True, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == PROMPT + alone.text


async def test_a_choice_can_be_had_alone_by_its_seed(client: AsyncOpenAI) -> None:
    several = await client.completions.create(model="target", prompt=PROMPT, n=3, max_tokens=NUM_TOKENS)
    last = several.choices[-1]
    seed = (last.model_extra or {})["seed"]
    (alone,) = (
        await client.completions.create(model="target", prompt=PROMPT, seed=seed, max_tokens=NUM_TOKENS)
    ).choices
    assert alone.text == last.text


async def test_the_synchronous_client_is_served_as_well(sync_client: OpenAI, client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "target", "prompt": PROMPT, "temperature": 0, "max_tokens": NUM_TOKENS}
    expected = (await client.completions.create(**asked)).choices[0].text
    assert (await asyncio.to_thread(sync_client.completions.create, **asked)).choices[0].text == expected

    def streamed() -> str:
        return "".join(chunk.choices[0].text for chunk in sync_client.completions.create(**asked, stream=True))

    assert await asyncio.to_thread(streamed) == expected
