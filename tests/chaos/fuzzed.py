"""The three services in this process, to be fuzzed: tiny models, real servers, and what must hold after a batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from outrider.worker.startup import LoadedModel
from tests.e2e.answers import ask
from tests.e2e.stack import RunningWorker, Stack, coordinator, load_tiny, save_tiny, worker
from tests.engine.tiny_models import VOCAB_SIZE, build

from .fuzzing import ANSWER_SECONDS_MAX, PROMPT, Complaints, Fuzzer

GOOD_TOKENS = 20
"""Of the good request after each batch."""


_folder = TemporaryDirectory()
"""Of the models: a worker that begins with one reads there again."""


@cache
def tiny(name: str) -> LoadedModel:
    """The target or the draft, loaded once per process; the worker that begins with it has it while it runs."""
    model = build("llama", layers=2) if name == "target" else build("llama", layers=1, seed=5)
    return load_tiny(save_tiny(model, Path(_folder.name) / name))


@dataclass(frozen=True, slots=True)
class FuzzedServices:
    """Running services and their fuzzer."""

    fuzzer: Fuzzer
    verify: RunningWorker
    draft: RunningWorker
    coordinate: Stack
    complaints: Complaints
    expected: list[int]
    """The answer to the good request."""

    async def batch(self, num_messages: int) -> None:
        """Sends nonsense, then checks that nothing is left of it. Raises AssertionError."""
        await self.fuzzer.batch(num_messages)
        assert not self.fuzzer.broken, self.fuzzer.broken[:3]
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            await self.verify.all_slots_free()
            await self.draft.all_slots_free()
            while (await self.coordinate.client.server_info()).num_running:
                pass
            answer = await ask(self.coordinate.client, PROMPT, max_tokens=GOOD_TOKENS, ignore_eos=True)
        assert answer.token_ids == self.expected
        assert not self.complaints.found, self.complaints.found[:3]


@asynccontextmanager
async def fuzzed_services(seed: int) -> AsyncIterator[FuzzedServices]:
    """Starts them, and a fuzzer of that seed."""
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    asyncio.get_running_loop().set_exception_handler(complaints.on_loop_error)
    try:
        async with (
            worker(tiny("target")) as verify,
            worker(tiny("draft"), draft=True) as draft,
            coordinator(verify.address, draft.address) as coordinate,
        ):
            expected = await ask(coordinate.client, PROMPT, max_tokens=GOOD_TOKENS, ignore_eos=True)
            servers = {
                "outrider.v1.VerifyService": verify.address,
                "outrider.v1.DraftService": draft.address,
                "outrider.v1.GenerationService": coordinate.address,
            }
            fuzzer = Fuzzer(Random(seed), servers, VOCAB_SIZE)
            try:
                yield FuzzedServices(fuzzer, verify, draft, coordinate, complaints, expected.token_ids)
            finally:
                await fuzzer.close()
    finally:
        logging.getLogger().removeHandler(complaints)
        asyncio.get_running_loop().set_exception_handler(None)
