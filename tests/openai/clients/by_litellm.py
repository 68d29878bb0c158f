"""LiteLLM: see `tests/openai/test_clients.py` for what is told."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm
import openai

litellm.suppress_debug_info = True  # it is printed

url, dictated_url, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
at: dict[str, Any] = {"model": "openai/target", "api_key": "none", "api_base": f"{url}/v1", "num_retries": 0}
text_at = {**at, "model": "text-completion-openai/target"}
sampling: dict[str, Any] = {"seed": asked["seed"], "max_tokens": asked["num_tokens"]}
messages = asked["messages"]
offered: dict[str, Any] = {**at, "api_base": f"{dictated_url}/v1", "tools": asked["tools"]}


def refused(**changes: Any) -> list[Any] | None:
    try:
        litellm.completion(**{**at, **sampling, "messages": messages, **changes})
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code]
    return None


async def leave() -> None:
    endless: dict[str, Any] = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}
    stream = await litellm.acompletion(**at, **endless, messages=messages, stream=True)
    await anext(stream)
    await stream.aclose()


def joined(**request: Any) -> Any:
    chunks = list(litellm.completion(**request, stream=True, stream_options={"include_usage": True}))
    return litellm.stream_chunk_builder(chunks, messages=request["messages"])


def told_of(choice: Any) -> list[Any]:
    return [[call.function.name, json.loads(call.function.arguments)] for call in choice.message.tool_calls]


streamed = joined(**at, **sampling, messages=messages)
whole_call = litellm.completion(**offered, messages=asked["question"]).choices[0]
call = joined(**offered, messages=asked["question"]).choices[0]
results = [{"role": "tool", "tool_call_id": each.id, "content": "3"} for each in call.message.tool_calls]
history = [*asked["question"], call.message, *results]
told = {
    "whole": litellm.completion(**at, **sampling, messages=messages).choices[0].message.content,
    "streamed": streamed.choices[0].message.content,
    "num_tokens": streamed.usage.completion_tokens,
    "completion": litellm.text_completion(**text_at, **sampling, prompt=asked["prompt"]).choices[0].text,
    "whole_calls": told_of(whole_call),
    "calls": told_of(call),
    "call_ids": [each.id for each in call.message.tool_calls],
    "finish_reasons": [whole_call.finish_reason, call.finish_reason],
    "answer": litellm.completion(**offered, messages=history).choices[0].message.content,
    "errors": [refused(model="openai/gpt-4"), refused(temperature=-1)],
}
asyncio.run(leave())
print(json.dumps(told), flush=True)
sys.stdin.read()  # until the test has seen what has become of the stream that was left
