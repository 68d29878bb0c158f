"""Structured output by OpenAI's own clients: what pydantic asks for is what comes, token for token as the target alone
would write it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError, OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageToolCall
from pydantic import BaseModel, Field

from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.sampling import SamplingParams
from tests.e2e.answers import ask
from tests.e2e.stack import Stack, coordinator, load_tiny, worker
from tests.openai.conftest import BUNDLED_TOKENS, blurred, http_at, random_target, saved

pytestmark = pytest.mark.asyncio(loop_scope="package")

TEMPLATE = """{% if tools %}{{ tools | tojson }}
{% endif %}{% for message in messages %}[{{ message.role }}] {{ message.content }}
{% endfor %}[assistant]{{ opened }}{# </think> <tool_call> #}"""
"""Of a model that calls tools as Hermes does, and may reason before it answers."""

MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>")
BEGIN, END, CALL = (BUNDLED_TOKENS + number for number in range(3))
"""Tokens of the markup."""

AT_ONCE: dict[str, Any] = {"chat_template_kwargs": {"opened": "<think></think>"}}
ALONE = {**AT_ONCE, "speculation": {"enabled": False}}

ASKED: dict[str, Any] = {
    "model": "target",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 400,
    "extra_body": AT_ONCE,
}


class Kind(Enum):
    """How a step goes."""

    FAST = "fast"
    SLOW = "très lent"


class Step(BaseModel):
    """One of a plan."""

    kind: Kind
    seconds: Annotated[int, Field(ge=0, le=99)]
    note: Annotated[str, Field(max_length=8)] | None


class Plan(BaseModel):
    """What is asked for."""

    title: Literal["plan"]
    steps: Annotated[list[Step], Field(min_length=1, max_length=2)]
    done: bool


class Add(BaseModel):
    """Adds two numbers."""

    a: Annotated[int, Field(ge=0, le=9)]
    b: Annotated[int, Field(ge=0, le=9)]


class Weather(BaseModel):
    """Tells the weather."""

    city: Literal["Zürich", "Oslo"]


TOOLS = [pydantic_function_tool(Add), pydantic_function_tool(Weather)]


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its drafter, as gRPC and HTTP serve them."""

    stack: Stack
    url: str
    client: AsyncOpenAI


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Random weights."""
    folder = tmp_path_factory.mktemp("marked")
    model = random_target(BUNDLED_TOKENS + len(MARKUP))
    async with (
        worker(load_tiny(saved(model, folder / "target", TEMPLATE, MARKUP))) as verify,
        worker(load_tiny(saved(blurred(model), folder / "draft", TEMPLATE, MARKUP)), draft=True) as draft,
        coordinator(verify.address, draft.address) as stack,
        http_at(stack) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield Pair(stack, url, client)


@pytest.fixture(scope="module")
def by_thread(pair: Pair) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("seed", range(2))
async def test_a_pydantic_model_is_parsed_and_is_what_the_target_alone_writes(pair: Pair, seed: int) -> None:
    asked: dict[str, Any] = {**ASKED, "seed": seed, "response_format": Plan}
    whole = await pair.client.chat.completions.parse(**asked)
    (choice,) = whole.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Plan)
    told = (whole.model_extra or {})["metrics"]["speculative_decoding"]
    assert told["num_accepted_draft_tokens"] > 0
    alone = await pair.client.chat.completions.parse(**{**asked, "extra_body": ALONE})
    assert alone.choices[0].message.content == choice.message.content
    async with pair.client.chat.completions.stream(**asked) as stream:
        _ = [event async for event in stream]
        streamed = (await stream.get_final_completion()).choices[0]
    assert (streamed.message.content, streamed.message.parsed) == (choice.message.content, choice.message.parsed)


async def test_the_synchronous_client_and_several_choices(pair: Pair, by_thread: OpenAI) -> None:
    asked: dict[str, Any] = {**ASKED, "seed": 1, "response_format": Plan, "n": 2}
    whole = await asyncio.to_thread(by_thread.chat.completions.parse, **asked)
    assert all(isinstance(choice.message.parsed, Plan) for choice in whole.choices)
    assert len({choice.message.content for choice in whole.choices}) == 2


async def test_a_response_is_parsed(pair: Pair) -> None:
    asked: dict[str, Any] = {"model": "target", "input": "x", "text_format": Plan, "max_output_tokens": 400}
    asked |= {"extra_body": {"seed": 3, "logit_bias": {BEGIN: -100}}}
    response = await pair.client.responses.parse(**asked)
    assert isinstance(response.output_parsed, Plan)
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    async with pair.client.responses.stream(**asked) as stream:
        _ = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_parsed == response.output_parsed


FORMS: list[tuple[dict[str, Any], Grammar, str]] = [
    ({"guided_regex": "[a-z]{3}-[0-9]{2}"}, Grammar(GrammarKind.REGEX, "[a-z]{3}-[0-9]{2}"), "[a-z]{3}-[0-9]{2}"),
    ({"guided_choice": ["a+b", "(c)", "ü"]}, Grammar(GrammarKind.REGEX, r"a\+b|\(c\)|ü"), r"a\+b|\(c\)|ü"),
    (
        {"structured_outputs": {"grammar": 'start: "x" /[ab]{2}/'}},
        Grammar(GrammarKind.LARK, 'start: "x" /[ab]{2}/'),
        "x..",
    ),
    ({"guided_json": {"enum": [1, "é"]}}, Grammar(GrammarKind.JSON_SCHEMA, '{"enum": [1, "é"]}'), '1|"é"'),
]


@pytest.mark.parametrize(("form", "grammar", "regex"), FORMS)
async def test_a_form_over_http_is_the_grammar_by_grpc(
    pair: Pair, form: dict[str, Any], grammar: Grammar, regex: str
) -> None:
    completion = await pair.client.completions.create(model="target", prompt="def f(", seed=5, extra_body=form)
    assert completion.choices[0].finish_reason == "stop"
    assert re.fullmatch(regex, completion.choices[0].text)
    sampling = SamplingParams(temperature=1.0, seed=5, grammar=grammar)
    assert completion.choices[0].text == (await ask(pair.stack.client, "def f(", sampling=sampling)).text
    chat = await pair.client.chat.completions.create(**{**ASKED, "seed": 5, "extra_body": AT_ONCE | form})
    assert re.fullmatch(regex, chat.choices[0].message.content or "")


async def test_any_object_and_an_end_by_length(pair: Pair) -> None:
    asked = {**ASKED, "seed": 1, "response_format": {"type": "json_object"}}
    choice = (await pair.client.chat.completions.create(**asked)).choices[0]
    assert choice.message.content
    assert choice.message.content.startswith("{")
    with pytest.raises(openai.LengthFinishReasonError):
        await pair.client.chat.completions.parse(**{**ASKED, "max_tokens": 3}, response_format=Plan)


def called(message: Any) -> list[BaseModel]:
    calls = [call for call in message.tool_calls or () if isinstance(call, ChatCompletionMessageToolCall)]
    return [call.function.parsed_arguments for call in calls]  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("choice", "kinds"),
    [("required", (Add, Weather)), ({"type": "function", "function": {"name": "Weather"}}, (Weather,))],
)
async def test_a_call_that_is_forced_keeps_to_the_tools_schema(
    pair: Pair, choice: Any, kinds: tuple[type[BaseModel], ...], seed: int
) -> None:
    asked: dict[str, Any] = {**ASKED, "tools": TOOLS, "tool_choice": choice, "seed": seed, "parallel_tool_calls": False}
    whole = (await pair.client.chat.completions.parse(**asked)).choices[0]
    (arguments,) = called(whole.message)
    assert isinstance(arguments, kinds)
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    alone = await pair.client.chat.completions.parse(**{**asked, "extra_body": ALONE})
    assert called(alone.choices[0].message) == [arguments]
    async with pair.client.chat.completions.stream(**asked) as stream:
        _ = [event async for event in stream]
        streamed = (await stream.get_final_completion()).choices[0]
    assert (called(streamed.message), streamed.finish_reason) == ([arguments], "tool_calls")


async def test_a_call_that_is_cut_off_ends_by_length(pair: Pair) -> None:
    asked: dict[str, Any] = {**ASKED, "tools": TOOLS, "tool_choice": "required", "max_tokens": 12}
    choice = (await pair.client.chat.completions.create(**asked)).choices[0]
    assert choice.finish_reason == "length"


async def test_a_response_calls_the_function_that_it_must(pair: Pair) -> None:
    tools: list[Any] = [openai.pydantic_function_tool(Weather)["function"] | {"type": "function"}]
    asked: dict[str, Any] = {"model": "target", "input": "x", "tools": tools, "parallel_tool_calls": False}
    asked |= {"extra_body": {"logit_bias": {BEGIN: -100}}}
    for choice in ("required", {"type": "function", "name": "Weather"}):
        response = await pair.client.responses.parse(**asked, tool_choice=choice)
        (item,) = response.output
        assert (item.type, response.status, response.parallel_tool_calls) == ("function_call", "completed", False)
        assert json.loads(item.arguments)["city"] in ("Zürich", "Oslo")


BAD_SCHEMA = {"type": "object", "properties": {"a": {"type": "objekt"}}}
BAD_TOOL = {"type": "function", "function": {"name": "f", "strict": True, "parameters": BAD_SCHEMA}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": BAD_SCHEMA}}},
            "response_format.json_schema",
        ),
        ({"tools": [BAD_TOOL], "tool_choice": "required"}, "tools"),
        ({"tools": [BAD_TOOL]}, "tools"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex"),
        ({"extra_body": {"guided_json": "{"}}, "guided_json"),
        ({"extra_body": {"structured_outputs": {"grammar": "start: x"}}}, "structured_outputs.grammar"),
        ({"extra_body": {"guided_choice": [""]}}, "guided_choice"),
        ({"extra_body": {"guided_regex": "a" * 200_000}}, "guided_regex"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_cannot_be_compiled_is_a_bad_request(
    pair: Pair, change: dict[str, Any], param: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await pair.client.chat.completions.create(**{**ASKED, **change}, stream=stream)
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")
    assert len(refused.value.message) < 1000


async def test_a_response_with_a_schema_that_cannot_be_compiled_is_a_bad_request(pair: Pair) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "n", "schema": BAD_SCHEMA}}
    with pytest.raises(BadRequestError) as refused:
        await pair.client.responses.create(model="target", input="x", text=text)
    assert refused.value.param == "text.format.schema"


async def test_the_form_is_that_of_what_comes_behind_the_reasoning(pair: Pair) -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {**Weather.model_json_schema(), "additionalProperties": False}},
    }
    opened = {**ASKED, "response_format": form, "extra_body": {"chat_template_kwargs": {"opened": "<think>"}}}
    free = {**ASKED, "response_format": form, "extra_body": {}}
    for asked, bias in ((opened, {END: 10}), (free, {BEGIN: 50, END: 60}), (free, {BEGIN: -100})):
        for seed in range(2):
            request: dict[str, Any] = {
                **asked,
                "seed": seed,
                "logit_bias": {str(key): each for key, each in bias.items()},
            }
            (choice,) = (await pair.client.chat.completions.create(**request)).choices
            assert choice.finish_reason == "stop"
            assert Weather.model_validate_json(choice.message.content or "")
            assert ("reasoning_content" in (choice.message.model_extra or {})) is (asked is opened)
            request["extra_body"] = {**request["extra_body"], "speculation": {"enabled": False}}
            assert (await pair.client.chat.completions.create(**request)).choices[0].message == choice.message


async def test_grpc_answers_a_conversation_with_the_same_tokens(pair: Pair) -> None:
    source = '{"enum": ["Zürich", "Oslo"]}'
    for opened, bias in (("<think>", 10), ("<think></think>", 0)):
        variables = {"opened": opened}
        extra = {"chat_template_kwargs": variables, "guided_json": source, "return_token_ids": True}
        asked = {**ASKED, "seed": 1, "logit_bias": {str(END): bias}, "extra_body": extra}
        (choice,) = (await pair.client.chat.completions.create(**asked)).choices
        prompt: Any = ChatPrompt(messages=ASKED["messages"], chat_template_kwargs=variables)
        grammar = Grammar(GrammarKind.JSON_SCHEMA, source)
        sampling = SamplingParams(temperature=1.0, seed=1, grammar=grammar, logit_bias=((END, bias),))
        answer = await ask(pair.stack.client, prompt, sampling=sampling, max_tokens=ASKED["max_tokens"])
        assert answer.token_ids == (choice.model_extra or {})["token_ids"]
        assert json.loads(choice.message.content or "") in ("Zürich", "Oslo")
        assert answer.text.endswith(choice.message.content or "-")


async def test_a_strict_tools_call_keeps_to_its_schema_once_the_model_begins_one(pair: Pair) -> None:
    asked: dict[str, Any] = {**ASKED, "tools": TOOLS, "seed": 1, "parallel_tool_calls": False}
    whole = (await pair.client.chat.completions.parse(**asked, logit_bias={str(CALL): 8})).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert all(isinstance(each, Add | Weather) for each in called(whole.message))
    free = {**asked, "max_tokens": 8, "logit_bias": {str(CALL): -100}}
    assert (await pair.client.chat.completions.create(**free)).choices[0].message.tool_calls is None


async def test_an_answer_in_a_form_or_a_call(pair: Pair) -> None:
    asked: dict[str, Any] = {**ASKED, "tools": TOOLS, "response_format": Weather, "seed": 1}
    called_one = (await pair.client.chat.completions.parse(**asked, logit_bias={str(CALL): 90})).choices[0]
    assert called(called_one.message)
    answered = (await pair.client.chat.completions.parse(**asked, logit_bias={str(CALL): -90})).choices[0]
    assert isinstance(answered.message.parsed, Weather)
