"""Completions by OpenAI's own clients: each parameter, whole and streamed, and the tokens that gRPC gives."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI

from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask
from tests.openai.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="package")

PROMPT = "def add(a, b):\n"

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
    "stop_token_ids": (
        {"extra_body": {"stop_token_ids": [*range(1000)]}}, {"temperature": 1.0}, {"stop_token_ids": [*range(1000)]}
    ),
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
    expected = await ask(
        served.stack.client, PROMPT, sampling=SamplingParams(seed=5, **sampling), max_tokens=24, **options
    )
    extra = {**by_http.get("extra_body", {}), "return_token_ids": True}
    asked: dict[str, Any] = {
        "model": "target",
        "prompt": PROMPT,
        "seed": 5,
        "max_tokens": 24,
        **by_http,
        "extra_body": extra,
    }
    whole = await client.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.model_extra is not None
    assert choice.model_extra["token_ids"] == expected.token_ids
    assert choice.model_extra["prompt_token_ids"] == list(expected.started.prompt_token_ids)
    assert choice.text == expected.text
    assert choice.finish_reason == ("length" if expected.finished.reason.name == "LENGTH" else "stop")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(expected.token_ids)
    chunks = [chunk async for chunk in await client.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    token_ids = [token_id for chunk in chunks for token_id in (chunk.choices[0].model_extra or {})["token_ids"]]
    assert token_ids == expected.token_ids
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [choice.finish_reason]
    assert len({chunk.id for chunk in chunks}) == 1
