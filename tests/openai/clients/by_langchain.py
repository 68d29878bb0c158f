"""LangChain's package for OpenAI: see `tests/openai/test_clients.py` for what is told."""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

import openai
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI

url, dictated_url, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sampling: dict[str, Any] = {
    "model": "target",
    "api_key": "none",
    "base_url": f"{url}/v1",
    "max_retries": 0,
    "max_tokens": asked["num_tokens"],
}
chat = ChatOpenAI(**sampling, seed=asked["seed"], stream_usage=True)
completion = CompletionOpenAI(**sampling, seed=asked["seed"], temperature=1)
caller = ChatOpenAI(model="target", api_key="none", base_url=f"{dictated_url}/v1", max_retries=0)
caller_with_tools = caller.bind_tools(asked["tools"])


def joined(chunks: Any) -> AIMessageChunk:
    first, *others = chunks
    return sum(others, first)


def refused(**changes: Any) -> list[Any] | None:
    try:
        ChatOpenAI(**{**sampling, **changes}).invoke(asked["messages"])
    except (openai.NotFoundError, openai.BadRequestError) as error:
        return [type(error).__base__.__name__, error.status_code]  # LangChain has subclasses of its own
    return None


def leave() -> None:
    patient = CompletionOpenAI(**{**sampling, "max_tokens": 900}, extra_body={"ignore_eos": True})
    stream = patient.stream(asked["prompt"])
    next(stream)
    stream.close()
    gc.collect()  # which closes the connection: LangChain does not


streamed = joined(chat.stream(asked["messages"]))
whole_call = caller_with_tools.invoke(asked["question"])
call = joined(caller_with_tools.stream(asked["question"]))
results = [ToolMessage("3", tool_call_id=each["id"]) for each in call.tool_calls]
told = {
    "whole": chat.invoke(asked["messages"]).content,
    "streamed": streamed.content,
    "num_tokens": streamed.usage_metadata["output_tokens"],
    "completion": completion.invoke(asked["prompt"]),
    "whole_calls": [[each["name"], each["args"]] for each in whole_call.tool_calls],
    "calls": [[each["name"], each["args"]] for each in call.tool_calls],
    "call_ids": [each["id"] for each in call.tool_calls],
    "finish_reasons": [each.response_metadata["finish_reason"] for each in (whole_call, call)],
    "answer": caller_with_tools.invoke([*asked["question"], call, *results]).content,
    "errors": [refused(model="gpt-4"), refused(temperature=-1)],
}
leave()
print(json.dumps(told), flush=True)
sys.stdin.read()  # until the test has seen what has become of the stream that was left
