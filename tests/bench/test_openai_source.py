"""An external server, played by a small HTTP server of the test's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from bench.rivals.openai_source import ExternalServerError, OpenAISource
from outrider.client import SamplingParams


class Handler(BaseHTTPRequestHandler):
    """Answers with the events that the test has put here."""

    events: ClassVar[list[dict[str, Any]]] = []
    status: ClassVar[int] = 200
    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.asked.append((self.path, json.loads(self.rfile.read(length))))
        self.send_response(self.status)
        self.end_headers()
        for event in self.events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.write(b": a comment\n\ndata: [DONE]\n\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet."""


POLL_SECONDS = 0.01
"""How soon the server sees that it is to end."""


@pytest.fixture
def address() -> Iterator[str]:
    Handler.events, Handler.status = [], 200
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def delta(text: str, token_ids: list[int] | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "token_ids": token_ids}]}


def usage(num_tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": num_tokens}}


async def test_tokens_by_id_and_by_event(address: str) -> None:
    Handler.events = [delta("a", [5]), delta("bc", [6, 7]), usage(3)]
    sample = await OpenAISource(address, "some-model").ask([1, 2], SamplingParams(temperature=0.8, seed=4), 3)
    assert list(sample.token_ids or ()) == [5, 6, 7]
    assert [each.num_tokens for each in sample.rounds] == [1, 2]
    assert sample.text == "abc"
    assert 0.0 < sample.first_token_ms <= sample.total_ms
    path, asked = Handler.asked[0]
    assert path == "/v1/completions"
    assert {name: asked[name] for name in ("model", "prompt", "max_tokens", "temperature", "seed", "ignore_eos")} == {
        "model": "some-model",
        "prompt": [1, 2],
        "max_tokens": 3,
        "temperature": 0.8,
        "seed": 4,
        "ignore_eos": True,
    }


async def test_tokens_by_id_of_a_verbose_event(address: str) -> None:
    Handler.events = [{**delta(text), "__verbose": {"tokens": [token]}} for text, token in (("a", 5), ("", 6))]
    Handler.events += [{**delta(""), "__verbose": {"tokens": []}}, usage(2)]
    sample = await OpenAISource(address, "m").ask([1], SamplingParams(), 2)
    assert list(sample.token_ids or ()) == [5, 6]
    assert [each.num_tokens for each in sample.rounds] == [1, 1]


async def test_a_server_without_token_ids_gives_text_and_the_right_total(address: str) -> None:
    Handler.events = [delta("a"), delta("bc"), usage(5)]
    sample = await OpenAISource(address + "/", "m").ask([1], SamplingParams(), 5)
    assert sample.token_ids is None
    assert sample.num_tokens == 5
    assert sample.text == "abc"


async def test_a_short_answer_is_refused(address: str) -> None:
    Handler.events = [delta("a", [5]), usage(1)]
    with pytest.raises(ExternalServerError, match="1 of 3 tokens"):
        await OpenAISource(address, "m").ask([1], SamplingParams(), 3)


async def test_a_refusal_is_told(address: str) -> None:
    Handler.status = 404
    with pytest.raises(ExternalServerError, match="404"):
        await OpenAISource(address, "m").ask([1], SamplingParams(), 3)


async def test_nobody_there() -> None:
    with pytest.raises(ExternalServerError, match="OpenAI-compatible"):
        await OpenAISource("http://127.0.0.1:1", "m").ask([1], SamplingParams(), 3)
