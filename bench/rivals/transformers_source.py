"""transformers' generation, plain or assisted, as something to ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

from bench.compare.sample import Round, Sample
from bench.stack.models import Models
from bench.stack.services import split_cores
from outrider.client import SamplingParams
from outrider.core.protocol.errors import OutriderError

LINE_BYTES_MAX = 16 * 1024 * 1024
"""Longest answer of the process: a million token ids."""


class TransformersError(OutriderError):
    """The process has ended, or said what it should not."""


class TransformersProcess:
    """The process that `transformers_process.py` is. One question at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Sends a question and returns the answer. Raises TransformersError."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        await self._process.stdin.drain()
        return await self.read()

    async def read(self) -> dict[str, Any]:
        """The next object that the process writes. Raises TransformersError."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            raise TransformersError(f"transformers' process ended with exit code {code}; its errors are above")
        return json.loads(line)


class TransformersSource:
    """One way of generating. Source of noise and rounding are its own, so sampled tokens are others than ours."""

    def __init__(self, process: TransformersProcess, *, assisted: bool) -> None:
        self._process = process
        self._assisted = assisted

    async def ask(self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int) -> Sample:
        """See `Source`."""
        answer = await self._process.ask(
            {
                "prompt": list(prompt),
                "max_tokens": max_tokens,
                "temperature": sampling.temperature,
                "seed": sampling.seed,
                "assisted": self._assisted,
            }
        )
        return Sample(
            first_token_ms=answer["first_token_ms"],
            total_ms=answer["total_ms"],
            rounds=[Round(num_tokens) for num_tokens in answer["rounds"]],
            token_ids=answer["token_ids"],
        )


@contextlib.asynccontextmanager
async def transformers_process(models: Models) -> AsyncIterator[TransformersProcess]:
    """Starts the process on all cores that the workers have together, with the same weights and dtype."""
    cores = sorted(core for half in split_cores(models) for core in half)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.rivals.transformers_process"),
        *(f"--target={models.target}", f"--draft={models.draft}"),
        *(f"--dtype={models.dtype}", f"--cores={','.join(map(str, cores))}"),
        *(f"--target-device={models.target_device}", f"--draft-device={models.draft_device}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    try:
        running = TransformersProcess(process)
        await running.read()
        yield running
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()
