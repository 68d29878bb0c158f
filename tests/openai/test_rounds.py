"""Reports of rounds, by HTTP and by gRPC: what a stream tells of its guesses when it is asked to."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from outrider.client import Round, Tokens, gather
from tests.openai.conftest import Served

pytestmark = pytest.mark.asyncio(loop_scope="package")

REPORTED = {"speculation": {"report_rounds": True}, "max_tokens": 40, "stream": True, "ignore_eos": True}
FATES = {"accepted", "foreseen", "live", "dropped"}
ORIGINS = {"accepted", "prompt_lookup", "recovered", "bonus", "target"}


async def chunks(plain: httpx.AsyncClient, path: str, **body: Any) -> list[dict[str, Any]]:
    response = await plain.post(path, json={**REPORTED, **body})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def rounds(told: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    found = [chunk["outrider"]["round"] for chunk in told if "outrider" in chunk]
    return [each for each in found if each["index"] == index]


@pytest.mark.parametrize("temperature", [0, 0.7])
async def test_the_rounds_tell_the_whole_text_and_where_it_came_from(
    plain: httpx.AsyncClient, temperature: float
) -> None:
    told = await chunks(plain, "/v1/completions", prompt="def f(", temperature=temperature, seed=3, n=2)
    for index in range(2):
        found = rounds(told, index)
        choices = [each for chunk in told for each in chunk["choices"] if each["index"] == index]
        last = choices[-1]
        text = "".join(choice["text"] for choice in choices)
        tokens = [token for each in found for token in each["tokens"]]
        assert "".join(token["text"] for token in tokens) + last["text"] == text
        assert len(tokens) == 40
        assert {token["origin"] for token in tokens} <= ORIGINS
        assert [each["number"] for each in found] == list(range(len(found)))
        for each in found:
            assert {node["fate"] for node in each["nodes"]} <= FATES
            assert all(0 <= node["parent"] < number for number, node in enumerate(each["nodes"], 1))
            accepted = [node["token_id"] for node in each["nodes"] if node["fate"] == "accepted"]
            origins = ("accepted", "prompt_lookup")
            assert sorted(accepted) == sorted(t["token_id"] for t in each["tokens"] if t["origin"] in origins)
            assert all(node["scored"] for node in each["nodes"] if node["fate"] == "accepted")
        assert [each["at_ms"] for each in found] == sorted(each["at_ms"] for each in found)


async def test_the_scored_nodes_are_those_that_are_counted(plain: httpx.AsyncClient) -> None:
    for seed in range(20):
        told = await chunks(plain, "/v1/completions", prompt="def f(", temperature=0.7, seed=seed)
        scored = sum(node["scored"] for each in rounds(told) for node in each["nodes"])
        looked_up = sum(node["prompt_lookup"] for each in rounds(told) for node in each["nodes"])
        accepted = sum(node["fate"] == "accepted" for each in rounds(told) for node in each["nodes"])
        counted = told[-1]["metrics"]["speculative_decoding"]
        assert scored == counted["num_draft_tokens"]
        assert accepted == counted["num_accepted_draft_tokens"]
        if scored > looked_up and accepted:
            return  # where the drafter got to run, the counts are of something
    pytest.fail("no drafted token was scored in any answer")


async def test_a_chat_and_a_target_alone_report_too(plain: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    told = await chunks(plain, "/v1/chat/completions", messages=messages, seed=1)
    assert sum(len(each["tokens"]) for each in rounds(told)) == 40
    told = await chunks(plain, "/v1/completions", prompt="a", speculation={"enabled": False, "report_rounds": True})
    assert {token["origin"] for each in rounds(told) for token in each["tokens"]} == {"target"}
    assert not any(each["nodes"] or each["draft_steps"] for each in rounds(told))


async def test_nobody_is_told_who_has_not_asked(plain: httpx.AsyncClient) -> None:
    told = await chunks(plain, "/v1/completions", prompt="a", speculation={})
    assert not rounds(told)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a", "stream": False}),
        ("/v1/responses", {"input": "a", "max_tokens": None, "ignore_eos": None}),
    ],
)
async def test_what_is_not_a_stream_of_chunks_has_no_place_for_reports(
    plain: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    response = await plain.post(path, json={**REPORTED, **body})
    assert response.status_code == 400
    assert "stream" in response.json()["error"]["message"]


async def test_the_python_client_yields_them_after_their_tokens(served: Served) -> None:
    generating = served.stack.client.generate("def f(", max_tokens=30, num_completions=2, report_rounds=True)
    latest: dict[int, Tokens] = {}
    found: list[Round] = []
    async for event in generating:
        if isinstance(event, Tokens):
            latest[event.completion] = event
        elif isinstance(event, Round):
            assert latest.pop(event.completion).position == event.position
            found.append(event)
    assert not latest
    assert {event.completion for event in found} == {0, 1}
    answer = await gather(served.stack.client.generate("def f(", max_tokens=30, report_rounds=True))
    assert len(answer.completions[0].token_ids) == 30
