"""Errors as OpenAI's clients see them, and bodies that are no requests."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, aclosing
from typing import Any

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from coordinator.openai import answer as answer_module
from coordinator.openai.body import BODY_BYTES_MAX
from coordinator.openai.completion import PROMPTS_MAX
from outrider.core.protocol.options import GenerationOptions
from tests.e2e.stack import coordinator, free_address
from tests.openai.conftest import MAX_REQUESTS, POISON, POISONED_TOKENS, Served, http_at, until_idle

pytestmark = pytest.mark.asyncio(loop_scope="package")

ASKED: dict[str, Any] = {"model": "target", "prompt": "a", "max_tokens": 4}


def deep(depth: int) -> bytes:
    return b'{"prompt":"a","x":' + b"[" * depth + b"]" * depth + b"}"


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "more than JSON": b"{} {}",
    "a list": b"[]",
    "a number": b"1",
    "no UTF-8": b'{"prompt":"\xff"}',
    "half a surrogate pair": b'{"prompt":"\\ud800"}',
    "deeply nested": deep(100_000),
    "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "no prompt": b"{}",
    "null": b'{"prompt":null}',
    "empty": b'{"prompt":""}',
    "no ids": b'{"prompt":[]}',
    "true is no id": b'{"prompt":[true]}',
    "mixed": b'{"prompt":[1,"a"]}',
    "too deep a prompt": b'{"prompt":[[[1]]]}',
    "a negative id": b'{"prompt":[-1]}',
    "an id beyond the vocabulary": b'{"prompt":[4096]}',
    "a huge id": b'{"prompt":[1' + b"0" * 4000 + b"]}",
    "too many prompts": json.dumps({"prompt": ["a"] * (PROMPTS_MAX + 1)}).encode(),
    "a huge seed": b'{"prompt":"a","seed":1' + b"0" * 4000 + b"}",
    "a negative seed": b'{"prompt":"a","seed":-1}',
    "a number as text": b'{"prompt":"a","max_tokens":"4"}',
    "a fraction": b'{"prompt":"a","max_tokens":4.5}',
    "not a number": b'{"prompt":"a","temperature":NaN}',
    "infinity": b'{"prompt":"a","temperature":1e999}',
    "a huge temperature": b'{"prompt":"a","temperature":1' + b"0" * 400 + b"}",
    "no token id": b'{"prompt":"a","logit_bias":{"x":1}}',
    "stop of numbers": b'{"prompt":"a","stop":[1]}',
    "too many stops": json.dumps({"prompt": "a", "stop": ["a"] * 17}).encode(),
    "echo with log-probabilities": b'{"prompt":"a","echo":true,"logprobs":1}',
    "unknown": b'{"prompt":"a","frobnicate":1}',
    "best of two": b'{"prompt":"a","best_of":2}',
    "a suffix": b'{"prompt":"a","suffix":"b"}',
    "ten megabytes of prompt": b'{"prompt":"' + b"a" * 10_000_000 + b'"}',
    "three megabytes of prompt": b'{"prompt":"' + b"a" * 3_000_000 + b'"}',
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_body_that_is_no_request_gets_an_error_in_openais_shape(plain: httpx.AsyncClient, name: str) -> None:
    content = MALFORMED[name]
    answer = await plain.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == (413 if len(content) > BODY_BYTES_MAX else 400)
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 10_000


NO_HTTP: dict[str, bytes] = {
    "nonsense": b"\x16\x03\x01\x00\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "no header": b"GET /healthz HTTP/1.1\r\nhost: x\r\nnonsense\r\n\r\n",
    "no length": b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "no chunk": b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\nx\r\n",
    "a long header": b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 3_000_000,
    "many headers": b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"x: a\r\n" * 100_000,
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_what_is_no_http_is_refused_in_the_same_shape_and_heard(served: Served, name: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.http.port)
    writer.write(NO_HTTP[name])
    await writer.drain()
    head, body = (await reader.readuntil(b"\r\n\r\n")), await reader.readuntil(b"}}")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    writer.close()
    await until_idle(served)


async def test_only_json_is_read(plain: httpx.AsyncClient) -> None:
    answer = await plain.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, "application/json" in answer.json()["error"]["message"]) == (415, True)


async def test_a_path_or_method_that_there_is_not(plain: httpx.AsyncClient) -> None:
    for method, path, status in (("GET", "/v2/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/", 404)):
        answer = await plain.request(method, path)
        assert answer.status_code == status
        assert f"{method} {path}" in answer.json()["error"]["message"]


async def test_a_clients_own_words_are_repeated_only_so_far(plain: httpx.AsyncClient) -> None:
    long = "x" * 50_000
    answers = [
        await plain.post("/v1/completions", json={**ASKED, "model": long}),
        await plain.post("/v1/completions", json={**ASKED, long: 1}),
        await plain.post("/v1/completions", json={**ASKED, "speculation": {long: 1}}),
        await plain.get(f"/v1/{long}"),
    ]
    for answer in answers:
        assert (answer.status_code // 100, len(answer.content) < 5000) == (4, True)


async def test_another_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.completions.create(**{**ASKED, "model": "gpt-4"})
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4")


async def test_models_tokens_and_health(served: Served, client: AsyncOpenAI, plain: httpx.AsyncClient) -> None:
    assert [model.id async for model in client.models.list()] == ["target"]
    assert (await client.models.retrieve("target")).owned_by == "outrider"
    told = (await plain.post("/tokenize", json={"prompt": "def é"})).json()
    assert told["tokens"] == await served.stack.service.tokenize("def é")
    bare = (await plain.post("/tokenize", json={"prompt": "def é", "add_special_tokens": False})).json()
    assert [0, *bare["tokens"]] == told["tokens"]
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), served.stack.service.target().max_context)
    back = (await plain.post("/detokenize", json={"tokens": told["tokens"]})).json()
    assert back == {"prompt": "<|endoftext|>def é"}
    assert (await plain.post("/detokenize", json={"tokens": [99999]})).status_code == 400
    assert [(await plain.get(path)).status_code for path in ("/healthz", "/readyz", "/version")] == [200, 200, 200]
    served.http.set_ready(False)
    refused = await plain.get("/readyz")
    served.http.set_ready(True)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    paths = (await plain.get("/openapi.json")).json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/models"} <= paths.keys()


async def test_a_full_coordinator_says_when_to_come_again(served: Served, client: AsyncOpenAI) -> None:
    options = GenerationOptions(max_tokens=900, ignore_eos=True, num_completions=MAX_REQUESTS)
    async with AsyncExitStack() as running:
        events = await running.enter_async_context(aclosing(served.stack.service.generate("a", options)))
        await anext(events)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.completions.create(**ASKED)
        assert refused.value.response.headers["retry-after"] == "1"
        with pytest.raises(openai.RateLimitError):
            await client.completions.create(**ASKED, stream=True)
        refused_again = asyncio.Event()

        async def on_response(answer: httpx2.Response) -> None:
            if answer.status_code == 429:
                refused_again.set()

        http_client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [on_response]})
        async with AsyncOpenAI(
            base_url=client.base_url, api_key="none", max_retries=2, http_client=http_client
        ) as other:
            retrying = asyncio.create_task(other.completions.create(**ASKED))
            await refused_again.wait()
            await events.aclose()
            assert (await retrying).choices[0].finish_reason == "length"


async def test_without_a_verifier_the_service_is_unavailable() -> None:
    async with coordinator(free_address(), "", wait_for_target=False) as stack, http_at(stack) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for asking in (client.completions.create(**ASKED), client.models.retrieve("target")):
                with pytest.raises(openai.InternalServerError) as refused:
                    await asking
                assert (refused.value.status_code, refused.value.code) == (503, "worker_unavailable")
                assert refused.value.response.headers["retry-after"] == "1"
        async with httpx.AsyncClient(base_url=url) as plain:
            assert [(await plain.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 503]


async def test_a_failure_inside_names_nothing_of_it_and_is_not_tried_again(served: Served, client: AsyncOpenAI) -> None:
    prompt = [POISON] * (POISONED_TOKENS + 1)
    patient = client.with_options(max_retries=5)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            await patient.completions.create(model="target", prompt=prompt, max_tokens=4, stream=stream)
        assert (failed.value.status_code, failed.value.code) == (500, "step_failed")
        assert "poisoned" not in failed.value.response.text
        assert failed.value.response.headers["x-should-retry"] == "false"


async def test_a_failure_in_mid_stream_is_an_event(served: Served, client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "target", "temperature": 0, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    stream = await client.completions.create(**asked, prompt=[POISON, 2], stream=True)
    assert (await anext(stream)).choices[0].text
    with pytest.raises(openai.APIError) as failed:
        _ = [chunk async for chunk in stream]
    assert failed.value.code == "step_failed"
    assert "poisoned" not in str(failed.value.body)
    healthy = await client.completions.create(**asked, prompt=[POISON + 1, 2])
    assert healthy.choices[0].finish_reason == "length"


async def test_what_nobody_foresaw_goes_to_the_log_alone(
    client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(answer_module, "mode", broken)
    with pytest.raises(openai.InternalServerError) as failed:
        await client.completions.create(**ASKED)
    assert failed.value.code == "unexpected"
    assert "secret" not in failed.value.response.text
    assert "secret" in caplog.text


async def test_a_client_that_does_not_wait_gives_up(served: Served, client: AsyncOpenAI) -> None:
    asked = {**ASKED, "max_tokens": 900, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.2).completions.create(**asked)
    await until_idle(served)
