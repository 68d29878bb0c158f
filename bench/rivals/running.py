"""Rivals by name, and all of their servers at once: each runs while it is asked, and is stopped meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench.compare.asking import Source
from bench.compare.sample import Sample
from bench.rivals.llama_cpp import llama_cpp_rivals
from bench.rivals.openai_source import OpenAISource
from bench.rivals.options import RivalName, RivalOptions
from bench.rivals.rival import Rival
from bench.rivals.server import RivalServer, server_process
from bench.rivals.vllm import vllm_rivals
from bench.stack.models import Models
from outrider.cli.child import Observer
from outrider.client import SamplingParams

LOGS = Path("build/rival-logs")
"""Where the servers' output goes."""

RIVALS: Mapping[RivalName, Callable[[RivalOptions, Models, int], Iterable[Rival]]] = {
    RivalName.VLLM: vllm_rivals,
    RivalName.LLAMA_CPP: llama_cpp_rivals,
}
"""What makes the arms of a rival, by its name."""

WAKING_TOKENS = 2
"""Of an answer that no clock measures. vLLM's workers stop spinning a second after their last step, and what wakes them
may be lost while they are stopped: they then look again after five seconds."""


def rivals_of(options: RivalOptions, models: Models, num_tokens: int) -> list[Rival]:
    """The arms of all rivals that are asked for, with room for `num_tokens` of prompt and answer.

    Raises NoRivalError.
    """
    return [rival for name in dict.fromkeys(options.names) for rival in RIVALS[name](options, models, num_tokens)]


class PausedSource:
    """A server that is awake for each question alone, and has answered a greeting and a short question before the clock
    starts."""

    def __init__(self, source: Source, server: RivalServer) -> None:
        self._source = source
        self._server = server

    async def ask(self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int) -> Sample:
        """See `Source`."""
        self._server.resume()
        try:
            await asyncio.to_thread(self._server.wait_until_ready)
            await self._source.ask(prompt[:1], sampling, WAKING_TOKENS)
            return await self._source.ask(prompt, sampling, max_tokens)
        finally:
            self._server.pause()


@contextlib.asynccontextmanager
async def running_rivals(rivals: Sequence[Rival], observer: Observer) -> AsyncIterator[dict[str, Source]]:
    """Starts their servers, one after another, and yields something to ask for each. Raises RivalDiedError."""
    with contextlib.ExitStack() as running:
        sources: dict[str, Source] = {}
        for rival in rivals:
            name = rival.mode.name
            observer.notice(f"starting {name}")
            environment = {**rival.environment, **os.environ}
            server = running.enter_context(
                server_process(RivalServer, rival.command, LOGS / f"{name}.log", environment)
            )
            await asyncio.to_thread(server.wait_until_ready)
            server.pause()
            sources[name] = PausedSource(OpenAISource(server.address, rival.model, rival.question), server)
        yield sources
