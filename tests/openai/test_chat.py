"""Chat by OpenAI's own clients: the template's prompt, gRPC's tokens."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError
from openai.types.chat import ChatCompletion

from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import Answer, ask
from tests.openai.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="package")

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]},
]
PROMPT = "[system] Be short.\n[user] Hi\nthere\n[assistant]"
NUM_TOKENS = 12
ASKED: dict[str, Any] = {"model": "target", "messages": MESSAGES, "seed": 5, "max_tokens": NUM_TOKENS}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def expected(served: Served) -> Answer:
    sampling = SamplingParams(temperature=1.0, seed=5)
    return await ask(
        served.stack.client, PROMPT, sampling=sampling, max_tokens=NUM_TOKENS, num_logprobs=2, add_special_tokens=False
    )


async def test_the_answer_is_what_grpc_gives_for_the_rendered_prompt(client: AsyncOpenAI, expected: Answer) -> None:
    asked = {**ASKED, "extra_body": {"return_token_ids": True}}
    whole: ChatCompletion = await client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert (choice.model_extra or {})["token_ids"] == expected.token_ids
    assert (whole.model_extra or {})["prompt_token_ids"] == list(expected.started.prompt_token_ids)
    assert choice.finish_reason == "length"
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, usage = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (chunks[0].model_extra or {})["prompt_token_ids"] == list(expected.started.prompt_token_ids)
    assert (usage.choices, usage.usage) == ([], whole.usage.model_copy() if whole.usage else None)


async def test_log_probabilities_have_tokens_and_bytes(client: AsyncOpenAI, expected: Answer) -> None:
    asked = {**ASKED, "logprobs": True, "top_logprobs": 2}
    (choice,) = (await client.chat.completions.create(**asked)).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    told = [token.logprobs for tokens in expected.rounds for token in tokens.tokens]
    assert [each.logprob for each in content] == pytest.approx([each.logprob for each in told if each is not None])
    assert all(len(each.top_logprobs) == 2 for each in content)
    assert bytes(byte for each in content for byte in each.bytes or ()).decode(errors="replace") == expected.text
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    streamed = [each for part in parts if part is not None for each in part.content or ()]
    assert [(each.token, each.bytes) for each in streamed] == [(each.token, each.bytes) for each in content]
    assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in content])


async def test_the_other_bounds_of_an_answer(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**{**ASKED, "max_completion_tokens": 3}, n=2)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6


async def test_a_final_message_is_continued(served: Served, client: AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two,"}]
    prompt = "[user] Count\n[assistant] One, two,"
    expected = await ask(served.stack.client, prompt, max_tokens=4, add_special_tokens=False)
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    whole = await client.chat.completions.create(
        model="target", messages=messages, temperature=0, max_tokens=4, extra_body=extra
    )
    assert whole.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"n": 99}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"speculation": {"max_draft_tokens": 99}}}, "speculation.max_draft_tokens"),
        ({"extra_body": {"speculation": {"depth": 9}}}, "speculation.depth"),
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
    ],
)
async def test_what_is_not_served_is_refused_by_its_name(
    client: AsyncOpenAI, change: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(**{**ASKED, **change})
    assert refused.value.type == "invalid_request_error"
    if param is not None:
        assert refused.value.param == param
        assert param.rpartition(".")[2] in str(refused.value)


async def test_what_changes_no_token_is_taken(client: AsyncOpenAI) -> None:
    harmless: dict[str, Any] = {
        "user": "me",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
    }
    extra = {"min_tokens": 0, "guided_json": None, "skip_special_tokens": True}
    asked = {**ASKED, "max_tokens": 4}
    plain = await client.chat.completions.create(**asked)
    found = await client.chat.completions.create(**asked, **harmless, extra_body=extra)
    assert found.choices[0].message == plain.choices[0].message


async def test_speculation_is_told_and_switched(served: Served, client: AsyncOpenAI, plain: httpx.AsyncClient) -> None:
    body = {**ASKED, "speculation": {"detailed": True, "max_draft_tokens": 4}}
    answer = await plain.post("/v1/chat/completions", json=body)
    told = answer.json()
    counts, timings = told["metrics"]["speculative_decoding"], told["timings"]
    assert len(counts["acceptance_histogram"]) == 5
    assert sum(counts["acceptance_histogram"]) == counts["num_spec_steps"] == len(counts["per_step_drafted"])
    assert sum(counts["per_step_accepted"]) == counts["num_accepted_draft_tokens"] == timings["draft_n_accepted"]
    assert sum(counts["per_step_drafted"]) == counts["num_draft_tokens"] == timings["draft_n"]
    assert counts["num_spec_tokens"] == 4
    assert answer.headers["x-outrider-mode"] == told["speculation"]["mode"] == "speculative"
    assert answer.headers["x-request-id"] in told["id"]
    assert answer.headers["x-outrider-batch-invariant"] in ("true", "false")
    assert told["speculation"]["explanation"][0].startswith(("Speculation ", "Too few rounds"))
    assert "completion_tokens_details" not in told["usage"]
    alone = (await plain.post("/v1/chat/completions", json={**ASKED, "speculation": {"enabled": False}})).json()
    assert alone["speculation"]["mode"] == "target_only"
    assert alone["speculation"]["explanation"] == ["Speculation was turned off for this request."]
    assert alone["metrics"]["speculative_decoding"] is None
    assert alone["choices"][0]["message"] == told["choices"][0]["message"]


@pytest.mark.parametrize("in_parts", [False, True])
async def test_a_prediction_changes_no_token_and_is_told_in_openais_words(
    client: AsyncOpenAI, expected: Answer, in_parts: bool
) -> None:
    text = expected.text
    parts: list[Any] = [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]
    prediction: Any = {"type": "content", "content": parts if in_parts else text}
    asked = {**ASKED, "prediction": prediction, "extra_body": {"return_token_ids": True}}
    whole: ChatCompletion = await client.chat.completions.create(**asked)
    assert (whole.choices[0].model_extra or {})["token_ids"] == expected.token_ids
    assert whole.usage is not None
    details = whole.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens or 0) > 0
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *_, last = [chunk async for chunk in stream]
    assert last.usage == whole.usage
    several = await client.chat.completions.create(**asked, n=2)
    assert several.usage is not None
    told = several.usage.completion_tokens_details
    assert told is not None
    assert sum(tokens or 0 for tokens in (told.accepted_prediction_tokens, told.rejected_prediction_tokens)) == 2 * sum(
        tokens or 0 for tokens in (details.accepted_prediction_tokens, details.rejected_prediction_tokens)
    )
    unpredicted = await client.chat.completions.create(**ASKED)
    assert unpredicted.usage is not None
    assert unpredicted.usage.completion_tokens_details is None


@pytest.mark.parametrize(
    "prediction",
    [
        "text",
        {},
        {"type": "content"},
        {"type": "other", "content": "a"},
        {"type": "content", "content": 1},
        {"type": "content", "content": [{"type": "image_url", "image_url": {}}]},
        {"type": "content", "content": [{"type": "text", "text": "a", "other": 1}]},
        {"type": "content", "content": "a " * 20_000},
    ],
)
async def test_a_prediction_that_is_none_is_refused_by_its_name(client: AsyncOpenAI, prediction: Any) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(**{**ASKED, "prediction": prediction})
    assert refused.value.param is not None
    assert refused.value.param.startswith("prediction")
