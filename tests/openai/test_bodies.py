"""Bodies as they are read: what they ask of the service, without one."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from coordinator.openai.api_error import ApiError
from coordinator.openai.body import BODY_BYTES_MAX, Body, read_body
from coordinator.openai.chat_body import ChatBody
from coordinator.openai.completion import PROMPTS_MAX, CompletionBody
from coordinator.openai.responses_body import ResponsesBody
from outrider.core.protocol.options import GenerationOptions
from outrider.core.protocol.sampling import SamplingParams

KINDS = (CompletionBody, ChatBody, ResponsesBody)
NEEDED = {"prompt": "a", "messages": [], "input": "a"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def request(content: bytes, num_chunks: int = 1) -> Request:
    size = -(-len(content) // num_chunks) or 1
    chunks = [content[start : start + size] for start in range(0, len(content), size)] or [b""]

    async def receive() -> dict[str, Any]:
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    headers = [(b"content-type", b"application/json; charset=utf-8")]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def read(kind: type[Body], **fields: Any) -> Any:
    needed = {name: value for name, value in NEEDED.items() if name in kind.model_fields}
    return await read_body(request(json.dumps(needed | fields).encode(), 3), kind)


async def test_what_is_left_out_is_openais_default() -> None:
    for kind in KINDS:
        body = await read(kind)
        drawn = GenerationOptions(sampling=SamplingParams(temperature=1.0), draw_seed=True)
        assert body.options() == drawn


async def test_prompts_are_counted_before_they_are_looked_at() -> None:
    """A body may hold half a million, and the event loop waits meanwhile."""
    body = await read(CompletionBody, prompt=[*[[1]] * PROMPTS_MAX, ["neither tokens nor a text"]])
    with pytest.raises(ApiError, match="at most 64 prompts"):
        body.prompts()


async def test_null_is_as_good_as_leaving_out() -> None:
    for kind in KINDS:
        names = kind.model_fields.keys() - NEEDED.keys()
        assert (await read(kind, **dict.fromkeys(names), frobnicate=None)).options() == (await read(kind)).options()


async def test_every_field_arrives() -> None:
    sampling = {"temperature": 0.5, "top_p": 0.75, "top_k": 4, "min_p": 0.25, "repetition_penalty": 1.5}
    sampling |= {"presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 2**64 - 1}
    fields = {"logit_bias": {"7": 1.5, "3": -2}, "stop": ["a", "b"], "stop_token_ids": [1, 2], "ignore_eos": True}
    speculation = {"enabled": False, "max_draft_tokens": 4, "tree_width": 2}
    expected = GenerationOptions(
        sampling=SamplingParams(**sampling, logit_bias=((3, -2.0), (7, 1.5))),
        max_tokens=12,
        stop=("a", "b"),
        stop_token_ids=(1, 2),
        ignore_eos=True,
        num_logprobs=3,
        speculate=False,
        max_draft_tokens=4,
        tree_width=2,
    )
    names: dict[type[Body], dict[str, Any]] = {
        CompletionBody: {"max_tokens": 12, "logprobs": 3},
        ChatBody: {"max_completion_tokens": 12, "max_tokens": 99, "logprobs": True, "top_logprobs": 3},
        ResponsesBody: {"max_output_tokens": 12, "include": ["message.output_text.logprobs"], "top_logprobs": 3},
    }
    for kind, own in names.items():
        assert (await read(kind, **sampling, **fields, speculation=speculation, **own)).options() == expected


async def test_the_bound_of_a_body_is_that_of_its_bytes() -> None:
    frame = len(json.dumps({"prompt": ""}))
    body = await read(CompletionBody, prompt="a" * (BODY_BYTES_MAX - frame))
    assert len(body.prompt) == BODY_BYTES_MAX - frame
    with pytest.raises(ApiError) as refused:
        await read(CompletionBody, prompt="a" * (BODY_BYTES_MAX - frame + 1))
    assert refused.value.status == 413


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
async def test_no_body_is_worse_than_refused(kind: type[Body], data: st.DataObject) -> None:
    """Whatever else were raised would be the service's own fault."""
    names = st.sampled_from([*kind.model_fields, "tools", "suffix", "user"]) | st.text(max_size=5)
    fields = data.draw(st.dictionaries(names, JSON, max_size=4))
    with suppress(ApiError):
        body: Any = await read_body(request(json.dumps(fields).encode()), kind)
        body.options()


@given(content=st.binary(max_size=20))
async def test_no_bytes_are_worse_than_refused(content: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        await read_body(request(content), CompletionBody)
    assert refused.value.status == 400
