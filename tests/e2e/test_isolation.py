"""A forward pass that fails for one session fails that session, and no other in the same step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from outrider.client import GenerationMode
from outrider.core.protocol.errors import StepFailedError
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.worker.startup import LoadedModel
from tests.e2e.answers import ask
from tests.e2e.holding import HeldEngine, Watched
from tests.e2e.stack import coordinator, load_tiny, save_tiny, stack, worker
from tests.engine.tiny_models import build

POISON = 13
"""First token of a prompt that no step survives."""


class FragileEngine(Engine):
    """An engine that fails whenever the poisoned prompt has a part in a step."""

    def step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        if any(job.line[0] == POISON for job in jobs):
            raise RuntimeError("poisoned")
        return super().step(jobs, max_line_tokens)


def fragile(folder: Path) -> LoadedModel:
    return replace(load_tiny(folder), engine=FragileEngine(build("llama"), max_sessions=4, max_context=200))


async def test_a_poisoned_request_harms_no_neighbour_at_the_verifier(tmp_path: Path) -> None:
    folder = save_tiny(build("llama"), tmp_path / "model")
    async with worker(fragile(folder)) as verify, coordinator(verify.address, "") as running:
        alone = await ask(running.client, [1, 2, 3], max_tokens=150, ignore_eos=True)
        neighbour = asyncio.create_task(ask(running.client, [1, 2, 3], max_tokens=150, ignore_eos=True))
        for _ in range(5):
            with pytest.raises(StepFailedError):
                await ask(running.client, [POISON, 2], max_tokens=4)
        assert (await neighbour).token_ids == alone.token_ids
        await verify.all_slots_free()


async def test_a_poisoned_request_at_the_drafter_goes_on_by_the_target_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(build("llama"), tmp_path / "model")
    engine = HeldEngine(build("llama"), max_sessions=4, max_context=200)
    async with stack(replace(load_tiny(folder), engine=engine), fragile(folder)) as running:
        alone = await ask(running.client, [POISON, 2], max_tokens=40, ignore_eos=True, speculate=False)
        watched = Watched(monkeypatch)
        engine.go_on.clear()
        asking = asyncio.create_task(ask(running.client, [POISON, 2], max_tokens=40, ignore_eos=True))
        try:
            await watched.lost.wait()
        finally:
            engine.go_on.set()
        answer = await asking
        assert answer.token_ids == alone.token_ids
        assert answer.finished.mode is GenerationMode.DEGRADED
        healthy = await ask(running.client, [1, 2], max_tokens=40, ignore_eos=True)
        assert healthy.finished.mode is GenerationMode.SPECULATIVE
