"""Clients that ask without a pause, by gRPC and by HTTP, and keep a history of every answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from outrider.client import Finished, GenerationClient, Started, Tokens
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.sampling import SamplingParams

from .history import History
from .services import Services

ANSWER_SECONDS_MAX = 180.0
"""Longest that an answer may take, faults and all. One that takes longer has failed."""

PAUSE_SECONDS = 0.2
"""After all coordinators have failed an HTTP client, one after another."""

TRIES_MAX = 200
"""Of an HTTP client in a row."""

STEPS_SHOWN = 20
"""Of a client in one silence."""

FAULTS_BEFORE_SECONDS = 10.0
"""A fault so long before a silence may still be going on: it is told with it."""


class Job(NamedTuple):
    """What to ask."""

    prompt: str
    sampling: SamplingParams
    max_tokens: int


_PROMPTS = (
    "import os\n\n\ndef walk(",
    "class Parser:\n    def __init__(self",
    "def main():\n    for i in range(",
    "# sort\n",
)


def jobs(max_tokens: int) -> Sequence[Job]:
    """Greedy ones and sampled ones."""
    return [
        Job(prompt, SamplingParams(temperature=temperature, seed=seed), max_tokens)
        for seed, prompt in enumerate(_PROMPTS)
        for temperature in (0.0, 0.9)
    ]


@dataclass(slots=True)
class Answered:
    """One answer, and what went wrong with it."""

    client: str
    job: int
    history: History
    began: float
    ended: float = 0.0
    num_resumed: int = 0
    failures: list[str] = field(default_factory=list[str])
    steps: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """What its client did and met beside tokens, and when: what a silence was spent on."""

    def on_step(self, what: str) -> None:
        """Its client does or meets something."""
        self.steps.append((time.monotonic(), what))

    def steps_in(self, start: float, end: float) -> list[str]:
        """What happened from `start` to `end`, with the seconds since `start`, behind the step that was the last before
        it."""
        before = [step for step in self.steps if step[0] < start]
        within = [step for step in self.steps if start <= step[0] <= end]
        return [f"{at - start:+.1f} s {what}" for at, what in (*before[-1:], *within)]


class GrpcClient:
    """A GenerationClient that knows all coordinators: it resumes by itself."""

    name = "gRPC"

    def __init__(self, services: Services) -> None:
        self._client = GenerationClient(services.addresses)

    async def ask(self, job: Job, answered: Answered) -> None:
        """Asks, and fills the history. Raises OutriderError."""
        history = answered.history
        async for event in self._client.generate(
            job.prompt, max_tokens=job.max_tokens, sampling=job.sampling, ignore_eos=True
        ):
            now = time.monotonic()
            match event:
                case Started():
                    history.num_prompt_tokens = len(event.prompt_token_ids)
                case Tokens():
                    token_ids = [token.token_id for token in event.tokens]
                    history.on_tokens(now, event.position, token_ids, event.text)
                case Finished():
                    history.on_finished(now, event.text)

    async def close(self) -> None:
        """Closes its channels."""
        await self._client.__aexit__(None, None, None)


class NotResumableError(Exception):
    """A stream broke off, and its events have no ids to go on from."""


class HttpClient:
    """Streams a completion as server-sent events. When it breaks off, it asks the next coordinator for what follows the
    last event, and brings the tokens that it has."""

    name = "HTTP"

    def __init__(self, services: Services) -> None:
        self._urls = services.urls
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(10.0, connect=2.0))

    async def ask(self, job: Job, answered: Answered) -> None:
        """Asks, and fills the history. Raises NotResumableError, and httpx's errors when it gives up."""
        body: dict[str, Any] = {
            "prompt": job.prompt,
            "max_tokens": job.max_tokens,
            "temperature": job.sampling.temperature,
            "seed": job.sampling.seed,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        last_id = ""
        for attempt in range(TRIES_MAX):
            url = f"{self._urls[attempt % len(self._urls)]}/v1/completions"
            headers = {"last-event-id": last_id} if last_id else {}
            if last_id:
                body["received_token_ids"] = [answered.history.token_ids]
            answered.on_step(f"asks {url}")
            try:
                async with self._client.stream("POST", url, json=body, headers=headers) as response:
                    answered.on_step(f"status {response.status_code}")
                    if response.status_code in (429, 500, 503):
                        raise httpx.ReadError(f"status {response.status_code}")
                    response.raise_for_status()
                    async for event_id, data in _events(response, answered):
                        last_id = event_id or last_id
                        if _take(data, answered.history):
                            return
                raise httpx.ReadError("the stream ended early")
            except (httpx.TransportError, httpx.StreamError) as error:
                if answered.history.times and not last_id:
                    raise NotResumableError(f"broke off after {len(answered.history.committed)} tokens") from error
                answered.num_resumed += 1
                answered.on_step(f"{type(error).__name__}: {error}"[:200])
                if (attempt + 1) % len(self._urls) == 0:
                    await asyncio.sleep(PAUSE_SECONDS)
        raise NotResumableError("no coordinator goes on")

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aclose()


def _take(data: str, history: History) -> bool:
    """Puts an event into the history. Returns whether it was the last one."""
    if data == "[DONE]":
        history.on_finished(time.monotonic())
        return True
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise httpx.ReadError(str(event["error"].get("message")))
    for choice in event["choices"]:
        if choice.get("prompt_token_ids"):
            history.num_prompt_tokens = len(choice["prompt_token_ids"])
        if (token_ids := choice.get("token_ids")) is not None or choice["text"]:
            history.on_tokens(time.monotonic(), history.end, token_ids or [], choice["text"])
    return False


async def _events(response: httpx.Response, answered: Answered) -> AsyncIterator[tuple[str, str]]:
    """Id and data of each event; the id is empty if it has none."""
    event_id = ""
    async for line in response.aiter_lines():
        if line.startswith(":"):
            answered.on_step("a comment")
        elif line.startswith("id:"):
            event_id = line.removeprefix("id:").strip()
        elif line.startswith("data:"):
            yield event_id, line.removeprefix("data:").strip()
            event_id = ""


class Streams:
    """Streams that never pause: each asks one job after another until it is told to stop."""

    def __init__(self, clients: Sequence[GrpcClient | HttpClient], asked: Sequence[Job]) -> None:
        self.answers: list[Answered] = []
        """Those that have ended."""
        self.running: dict[int, Answered] = {}
        """The one of each stream that has not."""
        self._clients = clients
        self._jobs = asked
        self._undisturbed: list[History] = []
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def measure_undisturbed(self) -> None:
        """Asks each job once, alone. To be called before anything is disturbed."""
        for index in range(len(self._jobs)):
            answered = await self._ask(self._clients[0], index)
            if answered.failures:
                raise RuntimeError(f"undisturbed, and it failed: {answered.failures}")
            self._undisturbed.append(answered.history)

    def start(self) -> None:
        """One stream for each client."""
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(len(self._clients))]

    async def stop(self) -> None:
        """Lets the answers that are under way come to their ends."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        for client in self._clients:
            await client.close()

    def silence(self, start: float, end: float, client: str = "") -> float:
        """The longest that any stream, or one of clients of that name, waited for a message around that time."""
        now = time.monotonic()
        running = [each for each in self.running.values() if client in ("", each.client)]
        every = [*(each for each in self.answers if client in ("", each.client)), *running]
        longest = max((each.history.silence(start, end) for each in every), default=0.0)
        for each in running:  # those that still wait
            if each.history.times and each.history.times[-1] < end:
                longest = max(longest, now - each.history.times[-1])
        return longest

    def longest_silences(self, number: int, faults: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
        """The longest waits for a message between two, whose they were, what the client did in them, and the `faults`
        (time, name) just before and in them."""
        spans = [
            (later - sooner, sooner, later, each)
            for each in self.answers
            for sooner, later in zip(each.history.times, each.history.times[1:], strict=False)
        ]
        longest = sorted(spans, key=lambda span: -span[0])[:number]
        return [
            {
                "seconds": seconds,
                "client": each.client,
                "num_resumed": each.num_resumed,
                "steps": each.steps_in(sooner, later)[:STEPS_SHOWN],
                "faults": [
                    f"{at - sooner:+.1f} s {name}" for at, name in faults if sooner - FAULTS_BEFORE_SECONDS < at < later
                ],
            }
            for seconds, sooner, later, each in longest
        ]

    @property
    def failures(self) -> list[str]:
        """What went wrong with which answer."""
        return [f"{each.client}, job {each.job}: {what}" for each in self.answers for what in each.failures]

    async def _run(self, number: int) -> None:
        index = number
        while not self._stopping.is_set():
            index = (index + 1) % len(self._jobs)
            answered = await self._ask(self._clients[number], index, number)
            if answered.history.is_finished:
                answered.failures += answered.history.against(self._undisturbed[index])
            self.answers.append(answered)

    async def _ask(self, client: GrpcClient | HttpClient, index: int, number: int = 0) -> Answered:
        answered = Answered(client.name, index, History(0), time.monotonic())
        self.running[number] = answered
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await client.ask(self._jobs[index], answered)
        except (OutriderError, NotResumableError, httpx.HTTPError) as error:
            answered.failures.append(f"{type(error).__name__}: {error}")
        except TimeoutError:
            num_tokens, last = len(answered.history.committed), answered.steps_in(answered.began, time.monotonic())
            answered.failures.append(
                f"no end after {ANSWER_SECONDS_MAX:g} s and {num_tokens} tokens; its client's last steps: "
                f"{last[-STEPS_SHOWN:]}"
            )
        finally:
            answered.ended = time.monotonic()
            del self.running[number]
        return answered
