"""Functions in responses, by OpenAI's own client: calls as items and as events, and their outputs in the next input."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError
from openai.types.responses import ResponseFunctionToolCall

from coordinator.openai.api_error import ApiError
from coordinator.openai.input_items import messages_of
from tests.openai.dictated import ANSWER

pytestmark = pytest.mark.asyncio(loop_scope="package")

QUESTION: dict[str, Any] = {"role": "user", "content": "What is 1 + 2?"}


def tool(name: str, **properties: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "name": name, "description": name, "parameters": parameters, "strict": False}


ASKED: dict[str, Any] = {"model": "target", "tools": [tool("add", a="integer", b="integer"), tool("weather")]}
CALLS = [("add", '{"a": 1, "b": 2}'), ("weather", '{"city": "Zürich 🙂"}')]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def caller(dictated: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{dictated}/v1", api_key="none", max_retries=0) as client:
        yield client


def told(output: Any) -> list[tuple[str, str]]:
    assert all(item.type == "function_call" and item.status == "completed" for item in output)
    return [(item.name, item.arguments) for item in output]


async def test_calls_come_as_items_and_their_outputs_go_back(caller: AsyncOpenAI) -> None:
    response = await caller.responses.create(**ASKED, input=[QUESTION], tool_choice="auto", parallel_tool_calls=True)
    assert told(response.output) == CALLS
    calls = [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]
    assert len({call.call_id for call in calls} | {call.id for call in calls}) == 4
    assert (response.status, [each.name for each in response.tools if each.type == "function"]) == (
        "completed",
        ["add", "weather"],
    )
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "3"} for call in calls]
    again: list[Any] = [QUESTION, *(call.to_dict() for call in calls), *results]
    assert (await caller.responses.create(**ASKED, input=again)).output_text == "".join(ANSWER)
    none = await caller.responses.create(**ASKED, input=[QUESTION], tool_choice="none")
    assert none.output_text == "".join(ANSWER)


async def test_the_events_of_calls(caller: AsyncOpenAI) -> None:
    events = [event async for event in await caller.responses.create(**ASKED, input=[QUESTION], stream=True)]
    kinds = [event.type.removeprefix("response.") for event in events]
    merged = [kind for number, kind in enumerate(kinds) if kind != kinds[number - 1]]
    of_a_call = [
        "output_item.added",
        *("function_call_arguments.delta", "function_call_arguments.done"),
        "output_item.done",
    ]
    assert merged == ["created", "in_progress", *of_a_call, *of_a_call, "completed"]
    deltas = ["", ""]
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            deltas[event.output_index] += event.delta
    assert deltas == [arguments for _, arguments in CALLS]
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.name, event.arguments, event.output_index) for event in done] == [
        (*call, number) for number, call in enumerate(CALLS)
    ]


async def test_the_clients_own_stream_puts_calls_together(caller: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {**ASKED, "input": [QUESTION]}
    async with caller.responses.stream(**asked) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.function_call_arguments.delta"]
        final = await stream.get_final_response()
    assert told(final.output) == CALLS
    assert CALLS[0][1] in snapshots


async def test_a_call_that_is_cut_off_is_incomplete(caller: AsyncOpenAI) -> None:
    response = await caller.responses.create(**ASKED, input=[QUESTION], max_output_tokens=4)
    (call,) = response.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments, call.status, response.status) == ("add", '{"a": 1', "incomplete", "incomplete")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", r"tools\[0\] must be a function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "an object with a name"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice", "one of the tools"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice", "one of the tools"),
    ],
)
async def test_what_is_no_function_is_refused(
    caller: AsyncOpenAI, change: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(BadRequestError, match=words) as refused:
        await caller.responses.create(**{**ASKED, "input": "x", **change})
    assert refused.value.param == param


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "3"}]}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So"}]}


async def test_items_of_a_turn_become_one_message() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}
    result = {"role": "tool", "content": OUTPUT["output"], "tool_call_id": "c1"}
    said = {"role": "assistant", "content": SAID["content"]}
    assert messages_of([QUESTION, CALL, OUTPUT, SAID]) == [QUESTION, called, result, said]
    assert messages_of([THOUGHT, SAID, CALL, CALL]) == [
        said | {"reasoning_content": "hm", "tool_calls": [CHAT_CALL, CHAT_CALL]}
    ]
    assert messages_of([THOUGHT, CALL, OUTPUT, CALL]) == [called | {"reasoning_content": "hm"}, result, called]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("x", "input[0] is no message"),
        ({"type": "item_reference", "id": "x"}, "input[0] is no message"),
        ({"type": []}, "input[0] is no message"),
        ({**CALL, "arguments": {}}, "input[0].arguments must be a string"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id must be a string"),
        ({"type": "reasoning", "content": "x"}, "input[0].content must be a list"),
        ({"type": "reasoning", "content": [{}]}, "input[0].content[0].text must be a string"),
    ],
)
async def test_what_is_no_item_is_refused(item: Any, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        messages_of([item])
    assert words in str(refused.value)
    assert refused.value.body["error"]["param"] == "input"
