"""A server with OpenAI's completions interface (vLLM, SGLang, llama.cpp, ...) as something to ask."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.compare.sample import Round, Sample
from outrider.client import SamplingParams
from outrider.core.protocol.errors import OutriderError

TIMEOUT_SECONDS = 600.0
"""A server that says nothing for so long has hung."""


class ExternalServerError(OutriderError):
    """The external server cannot be reached, refuses, or answers what cannot be measured."""


def completions_url(address: str) -> str:
    """What completions are asked of at the server with that address. Raises ValueError."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{address!r} is no address of an HTTP server; write http://HOST:PORT")
    return f"{address.rstrip('/')}/v1/completions"


class OpenAISource:
    """`POST {address}/v1/completions`, streamed, with the prompt as token ids.

    `ignore_eos` is an extension that vLLM, SGLang and llama.cpp know; a server that stops early is refused, since its
    time per token would not be comparable. vLLM gives each choice its token ids, llama.cpp each event if it is asked to
    be verbose.
    """

    def __init__(self, address: str, model: str, more: Mapping[str, Any] | None = None) -> None:
        """`more` are further fields of each request."""
        self._url = completions_url(address)
        self._model = model
        self._more = more or {}

    async def ask(self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int) -> Sample:
        """See `Source`. Raises ExternalServerError."""
        question = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            **self._more,
        }
        return await asyncio.to_thread(self._ask, question, max_tokens)

    def _ask(self, question: dict[str, Any], max_tokens: int) -> Sample:
        texts: list[str] = []
        token_ids: list[int] = []
        rounds: list[int] = []
        num_tokens = 0
        first = last = 0.0
        started = time.perf_counter()
        for event in self._events(question):
            for choice in event.get("choices", ()):
                ids = choice.get("token_ids") or (event.get("__verbose") or {}).get("tokens") or ()
                if choice.get("text") or ids:
                    last = time.perf_counter()
                    first = first or last
                    texts.append(choice.get("text", ""))
                    token_ids.extend(ids)
                    rounds.append(len(ids))
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        if num_tokens != max_tokens:
            raise ExternalServerError(
                f"{self._url} generated {num_tokens} of {max_tokens} tokens; it must know ignore_eos and report usage"
            )
        known = len(token_ids) == num_tokens
        return Sample(
            first_token_ms=(first - started) * 1000.0,
            total_ms=(last - started) * 1000.0,
            rounds=[Round(each) for each in rounds] if known else _evenly(num_tokens, len(rounds)),
            token_ids=token_ids if known else None,
            text="".join(texts),
        )

    def _events(self, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
        request = urllib.request.Request(
            self._url,
            json.dumps(question).encode(),
            {"Content-Type": "application/json", "Accept": "text/event-stream"},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=TIMEOUT_SECONDS
            ) as response:
                for line in response:
                    content = line.decode().strip().removeprefix("data:").strip()
                    if content and content != "[DONE]" and not content.startswith(":"):
                        yield json.loads(content)
        except urllib.error.HTTPError as error:
            raise ExternalServerError(f"{self._url} refuses: {error.code} {error.read(500).decode()!r}") from error
        except (OSError, ValueError) as error:
            raise ExternalServerError(f"{self._url}: {error}; is an OpenAI-compatible server there?") from error


def _evenly(num_tokens: int, num_events: int) -> list[Round]:
    """Rounds of a server that does not say how many tokens each event has: the total is right, the parts are not."""
    share, rest = divmod(num_tokens, max(num_events, 1))
    return [Round(share + (index < rest)) for index in range(max(num_events, 1))]
