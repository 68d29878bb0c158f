"""Responses by OpenAI's own clients: text in and out, and the events of a stream."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask
from tests.openai.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="package")

ASKED: dict[str, Any] = {"model": "target", "instructions": "Be short.", "max_output_tokens": 12}
PROMPT = "[system] Be short.\n[user] Hi\n[assistant]"
WITH_SEED: dict[str, Any] = {"extra_body": {"seed": 5}}


async def test_text_in_and_text_out(served: Served, client: AsyncOpenAI) -> None:
    sampling = SamplingParams(temperature=1.0, seed=5)
    expected = await ask(served.stack.client, PROMPT, sampling=sampling, max_tokens=12, add_special_tokens=False)
    inputs: list[Any] = [
        "Hi",
        [{"role": "user", "content": "Hi"}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
    ]
    for told in inputs:
        response = await client.responses.create(**ASKED, **WITH_SEED, input=told)
        assert response.output_text == expected.text
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len(expected.started.prompt_token_ids), 12)
    assert (response.model_extra or {})["speculation"]["mode"] == "speculative"
    stream = await client.responses.create(**ASKED, **WITH_SEED, input="Hi", stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected.text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output == response.output[:0] + last.response.output
    assert last.response.output_text == expected.text


async def test_log_probabilities_are_included(client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        **ASKED, input="Hi", include=["message.output_text.logprobs"], top_logprobs=1
    )
    (message,) = response.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert len(part.logprobs) == 12
    assert all(len(each.top_logprobs) == 1 for each in part.logprobs)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": []}, None),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
async def test_what_is_not_served_is_refused_by_its_name(
    client: AsyncOpenAI, change: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await client.responses.create(**{**ASKED, "instructions": None, "input": "Hi", **change})
    if param is not None:
        assert refused.value.param == param
