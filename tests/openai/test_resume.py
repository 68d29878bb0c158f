"""Last-Event-ID: a stream that was cut anywhere goes on so that nothing is missing and nothing comes twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx
import pytest

from coordinator.openai.event_id import EventId, ToldChoice
from coordinator.openai.stream_position import tokens_checksum
from tests.openai.conftest import Served, http_at

pytestmark = pytest.mark.asyncio(loop_scope="package")

PROMPT = "def add(a, b):\n"
RESPONSES = "/v1/responses"
MESSAGES = [{"role": "user", "content": "Say something."}]
NUM_TOKENS = 12


class Sent(NamedTuple):
    """A server-sent event."""

    event_id: str | None
    chunk: dict[str, Any] | None
    """None for the last word."""


async def stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], last_event_id: str | None = None
) -> list[Sent]:
    headers = {} if last_event_id is None else {"last-event-id": last_event_id}
    length = "max_output_tokens" if path == RESPONSES else "max_tokens"
    answer = await client.post(path, json={"stream": True, length: NUM_TOKENS, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[Sent] = []
    for event in answer.text.split("\n\n")[:-1]:
        if event.startswith(":"):
            continue  # a comment
        lines = dict(line.split(": ", 1) for line in event.split("\n"))
        found.append(Sent(lines.get("id"), None if lines["data"] == "[DONE]" else json.loads(lines["data"])))
    return found


def joined(events: Sequence[Sent]) -> dict[int, Any]:
    """All that the chunks of each choice say, but for where they are cut."""
    choices: dict[int, dict[str, Any]] = {}
    for _, chunk in events:
        for choice in () if chunk is None else chunk["choices"]:
            told = choices.setdefault(choice["index"], {"text": "", "ids": [], "logprobs": [], "ends": [], "begins": 0})
            delta = choice.get("delta", {})
            told["text"] += choice.get("text", "") + delta.get("content", "")
            told["begins"] += "role" in delta
            told["ids"] += choice.get("token_ids") or []
            logprobs = choice["logprobs"] or {}
            told["logprobs"] += [round(each, 3) for each in logprobs.get("token_logprobs", [])]
            told["logprobs"] += [(each["token"], round(each["logprob"], 3)) for each in logprobs.get("content", [])]
            if choice["finish_reason"] is not None:
                told["ends"].append((choice["finish_reason"], choice["seed"]))
    return choices


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("/v1/completions", {"prompt": PROMPT, "temperature": 0, "return_token_ids": True}),
    "a drawn seed": ("/v1/completions", {"prompt": PROMPT, "return_token_ids": True, "echo": True}),
    "choices": ("/v1/completions", {"prompt": PROMPT, "seed": 3, "n": 3, "return_token_ids": True, "logprobs": 2}),
    "penalties and a stop string": (
        "/v1/completions",
        {"prompt": PROMPT, "seed": 1, "repetition_penalty": 1.3, "presence_penalty": 0.4, "stop": ["return x", "e"]},
    ),
    "prompts": ("/v1/completions", {"prompt": [PROMPT, "class", PROMPT], "n": 2, "return_token_ids": True}),
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "seed": 4, "n": 2, "logprobs": True}),
    "chat with usage": (
        "/v1/chat/completions",
        {"messages": MESSAGES, "seed": 6, "stream_options": {"include_usage": True}},
    ),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_stream_goes_on_where_it_was_cut(served: Served, plain: httpx.AsyncClient, name: str) -> None:
    path, body = BODIES[name]
    whole = await stream(plain, path, body)
    assert all(event.event_id for event in whole[:-1])
    expected = joined(whole)
    cuts = sorted({0, len(whole) // 2, len(whole) - 3, len(whole) - 2})
    async with http_at(served.stack) as url, httpx.AsyncClient(base_url=url, timeout=30) as elsewhere:
        rests = [await stream(elsewhere, path, body, whole[cut].event_id) for cut in cuts]
    for cut, rest in zip(cuts, rests, strict=True):
        together = [*whole[: cut + 1], *rest]
        assert joined(together) == expected, f"cut behind event {cut}"
        assert rest[-1].chunk is None
        assert len({chunk["id"] for _, chunk in together if chunk is not None}) == 1
        assert len({chunk["created"] for _, chunk in together if chunk is not None}) == 1
        assert sum(chunk.get("usage") is not None for _, chunk in together if chunk is not None) == sum(
            chunk.get("usage") is not None for _, chunk in whole if chunk is not None
        )


async def test_a_stream_may_be_cut_again(plain: httpx.AsyncClient) -> None:
    path, body = BODIES["a drawn seed"]
    whole = await stream(plain, path, body)
    rest = await stream(plain, path, body, whole[2].event_id)
    last = await stream(plain, path, body, rest[1].event_id)
    assert joined([*whole[:3], *rest[:2], *last]) == joined(whole)


async def test_whoever_continues_may_predict_what_it_has(served: Served, plain: httpx.AsyncClient) -> None:
    path, body = BODIES["greedy"]
    body = body | {"stream_options": {"include_usage": True}}
    whole = await stream(plain, path, body)
    had = whole[: len(whole) // 2]
    predicting = body | {"prediction": {"type": "content", "content": joined(had)[0]["text"]}}
    async with http_at(served.stack) as url, httpx.AsyncClient(base_url=url, timeout=30) as elsewhere:
        rest = await stream(elsewhere, path, predicting, had[-1].event_id)
    assert joined([*had, *rest]) == joined(whole)
    assert rest[-2].chunk is not None
    assert "accepted_prediction_tokens" in rest[-2].chunk["usage"]["completion_tokens_details"]


BROUGHT = {
    **{name: BODIES[name] for name in ("a drawn seed", "choices", "prompts")},
    "penalties and a stop string": (
        "/v1/completions",
        {**BODIES["penalties and a stop string"][1], "return_token_ids": True},
    ),
    "chat with usage": (
        "/v1/chat/completions",
        {**BODIES["chat with usage"][1], "return_token_ids": True, "logprobs": True},
    ),
}


def brought(events: Sequence[Sent], num_choices: int) -> list[list[int]]:
    """What `received_token_ids` has to be after these events."""
    choices = joined(events)
    return [choices[index]["ids"] if index in choices else [] for index in range(num_choices)]


def told(events: Sequence[Sent]) -> dict[int, Any]:
    """The same as `joined`, but for the log-probabilities, of which it has the number: passes of other sizes may differ
    in their last digits."""
    return {index: {**choice, "logprobs": len(choice["logprobs"])} for index, choice in joined(events).items()}


@pytest.mark.parametrize("name", BROUGHT)
async def test_nothing_is_written_anew_of_what_a_client_brings(
    served: Served, plain: httpx.AsyncClient, name: str
) -> None:
    path, body = BROUGHT[name]
    whole = await stream(plain, path, body)
    expected = told(whole)
    cuts = sorted({0, len(whole) // 2, len(whole) - 3, len(whole) - 2})
    async with http_at(served.stack) as url, httpx.AsyncClient(base_url=url, timeout=30) as elsewhere:
        for cut in cuts:
            had = whole[: cut + 1]
            bringing = body | {"received_token_ids": brought(had, len(expected))}
            rest = await stream(elsewhere, path, bringing, had[-1].event_id)
            assert told([*had, *rest]) == expected, f"cut behind event {cut}"
            assert rest[-1].chunk is None
            if len(expected) == 1:  # then a chunk tells what was written
                num_had = len(bringing["received_token_ids"][0])
                chunks = [event.chunk for event in rest if event.chunk is not None]
                written = {chunk["timings"]["predicted_n"] for chunk in chunks if "timings" in chunk}
                assert written <= {len(expected[0]["ids"]) - num_had}


async def test_a_client_that_brings_its_tokens_may_be_cut_again(plain: httpx.AsyncClient) -> None:
    path, body = BODIES["choices"]
    whole = await stream(plain, path, body)
    had = whole[:3]
    had += (await stream(plain, path, body | {"received_token_ids": brought(had, 3)}, had[-1].event_id))[:3]
    had += await stream(plain, path, body | {"received_token_ids": brought(had, 3)}, had[-1].event_id)
    assert told(had) == told(whole)


async def test_tokens_that_did_not_come_are_refused(plain: httpx.AsyncClient) -> None:
    path, body = BODIES["greedy"]
    had = (await stream(plain, path, body))[:3]
    event_id, (received,) = had[-1].event_id, brought(had, 1)
    assert event_id is not None
    streamed = {**body, "stream": True, "max_tokens": NUM_TOKENS}
    field = "received_token_ids"
    for wrong in ([], [received, []], [received[:-1]], [[*received, 1]], [[*received[:-1], received[-1] ^ 1]]):
        error = await refusal(plain, streamed | {field: wrong}, event_id, param=field)
        assert "not the tokens that came" in error["message"]
    for wrong in ([[-1]], [[2**32]], [[1.5]], [[True]], received):
        await refusal(plain, streamed | {field: wrong}, event_id, param=field)
    answer = await plain.post(path, json=streamed | {field: [received]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), "without the id of an event"
    answer = await plain.post(path, json=streamed | {field: [received], "stream": False})
    assert answer.status_code == 400
    made_up = EventId.decode(event_id, 1, 1)
    beyond = [2**32 - 1]
    made_up.choices[0] = ToldChoice(1, tokens_checksum(beyond))
    error = await refusal(plain, streamed | {field: [beyond]}, made_up.encode().decode(), param=field)
    assert "out of range" in error["message"]


async def refusal(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    last_event_id: str,
    path: str = "/v1/completions",
    param: str = "last-event-id",
) -> dict[str, Any]:
    answer = await client.post(path, json=body, headers={"last-event-id": last_event_id})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    return error


async def test_what_cannot_go_on_is_refused_in_words(plain: httpx.AsyncClient) -> None:
    path, body = BODIES["greedy"]
    event_id = (await stream(plain, path, body))[1].event_id
    assert event_id is not None
    streamed = {**body, "stream": True, "max_tokens": NUM_TOKENS}
    for nonsense in ("nonsense", "", event_id[:-1], "A" * 200):
        assert "no id of this" in (await refusal(plain, streamed, nonsense))["message"]
    assert "no id of this" in (await refusal(plain, streamed | {"n": 2}, event_id))["message"]
    assert "another request" in (await refusal(plain, streamed | {"prompt": "x"}, event_id))["message"]
    assert "another request" in (await refusal(plain, streamed | {"top_p": 0.5}, event_id))["message"]
    assert "stream: true" in (await refusal(plain, {**body, "max_tokens": 4}, event_id))["message"]
    assert "no id of this" in (await refusal(plain, streamed | {"prompt": ["a", "b"]}, event_id))["message"]
    response = {"input": "x", "max_output_tokens": 4, "stream": True}
    assert "another request" in (await refusal(plain, response, event_id, RESPONSES))["message"]
    assert "stream: true" in (await refusal(plain, response | {"stream": False}, event_id, RESPONSES))["message"]


async def test_rounds_are_reported_once(plain: httpx.AsyncClient) -> None:
    body = {"prompt": PROMPT, "seed": 2, "speculation": {"report_rounds": True}, "ignore_eos": True, "max_tokens": 30}
    body["return_token_ids"] = True
    whole = await stream(plain, "/v1/completions", body)
    assert all(event.event_id for event in whole[:-1])
    told = reported(whole)
    assert len(told) == 30
    for cut in (0, len(whole) // 2, len(whole) // 2 + 1):  # behind tokens, and behind the report of them
        rest = await stream(plain, "/v1/completions", body, whole[cut].event_id)
        assert joined([*whole[: cut + 1], *rest]) == joined(whole)
        before, after = reported(whole[: cut + 1]), reported(rest)
        assert before | after == told, "each token is reported"
        report = next(event.chunk["outrider"]["round"] for event in rest if event.chunk and "outrider" in event.chunk)
        end = report["position"] + len(report["tokens"])
        assert end > max(before, default=0) + 1, "and no round of which all has been reported"
        ids = [[token_id for _, token_id in sorted(told.items())][: len(joined(whole[: cut + 1])[0]["ids"])]]
        bringing = await stream(plain, "/v1/completions", body | {"received_token_ids": ids}, whole[cut].event_id)
        assert reported(whole[: cut + 1]) | reported(bringing) == told, "what a client brings is reported, too"


def reported(events: Sequence[Sent]) -> dict[int, int]:
    """Token ids by position, as reports of rounds tell them."""
    rounds = [event.chunk["outrider"]["round"] for event in events if event.chunk and "outrider" in event.chunk]
    return {each["position"] + at: told["token_id"] for each in rounds for at, told in enumerate(each["tokens"])}


FORGOTTEN = {"metrics", "timings", "speculation", "usage"}
"""What a response tells of its making."""


def remembered(events: Sequence[Sent]) -> list[Any]:
    chunks = [dict(event.chunk) for event in events if event.chunk is not None]
    for chunk in chunks:
        if "response" in chunk:
            chunk["response"] = {name: told for name, told in chunk["response"].items() if name not in FORGOTTEN}
    return chunks


async def test_a_response_goes_on_where_it_was_cut(served: Served, plain: httpx.AsyncClient) -> None:
    body = {"input": "Say something.", "include": ["message.output_text.logprobs"], "seed": 9}
    whole = await stream(plain, RESPONSES, body)
    assert all(event.event_id for event in whole)
    async with http_at(served.stack) as url, httpx.AsyncClient(base_url=url, timeout=30) as elsewhere:
        for cut in (0, 3, len(whole) // 2, len(whole) - 4, len(whole) - 2, len(whole) - 1):
            rest = await stream(elsewhere, RESPONSES, body, whole[cut].event_id)
            assert rounded(remembered(rest)) == rounded(remembered(whole[cut + 1 :])), f"cut behind event {cut}"


def rounded(value: Any) -> Any:
    """Log-probabilities come from passes of other sizes: they may differ in their last digits."""
    match value:
        case float():
            return round(value, 3)
        case dict():
            return {name: rounded(each) for name, each in value.items()}
        case list():
            return [rounded(each) for each in value]
        case _:
            return value


async def test_calls_of_a_response_keep_their_ids(dictated: str) -> None:
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("add", "weather")]
    body = {"input": "What is 1 + 2?", "tools": tools, "max_output_tokens": 64}
    async with httpx.AsyncClient(base_url=dictated, timeout=30) as client:
        whole = await stream(client, RESPONSES, body)
        ids = {event.chunk["item"]["call_id"] for event in whole if event.chunk and "item" in event.chunk}
        assert len(ids) == 2
        for cut in (3, len(whole) // 2, len(whole) - 3):
            rest = await stream(client, RESPONSES, body, whole[cut].event_id)
            assert remembered(rest) == remembered(whole[cut + 1 :])
