"""Real services whose forward passes are made to take a set time: the schedule shows in the clock.

The set times dwarf everything else, and the bound lies halfway between two schedules, so that a noisy machine does not
decide. Figures of real models are a matter for benchmarks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job
from outrider.worker import step_runner
from outrider.worker.startup import LoadedModel
from tests.e2e.answers import ask
from tests.e2e.stack import load_tiny, save_tiny, stack
from tests.engine.tiny_models import build

DRAFT_STEP_SECONDS = 0.045
VERIFY_STEP_SECONDS = 0.180
MAX_DRAFT_TOKENS = 3
NUM_TOKENS = 81


class PacedEngine(Engine):
    """An engine whose steps take at least a set time, in which the interpreter is free as during a real kernel."""

    step_seconds: float

    def step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        started = time.monotonic()
        output = super().step(jobs, max_line_tokens)
        time.sleep(max(0.0, started + self.step_seconds - time.monotonic()))
        return output


def paced(folder: Path, step_seconds: float) -> LoadedModel:
    engine = PacedEngine(build("llama"), max_sessions=2, max_context=200)
    engine.step_seconds = step_seconds
    return replace(load_tiny(folder), engine=engine)


async def test_time_per_token_is_that_of_the_overlapped_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft is the target itself, so every guess is right: the schedule alone decides."""
    monkeypatch.setattr(step_runner, "measure", lambda engine: [(size, engine.step_seconds) for size in (1, 32)])
    folder = save_tiny(build("llama"), tmp_path / "model")
    target, draft = paced(folder, VERIFY_STEP_SECONDS), paced(folder, DRAFT_STEP_SECONDS)
    async with stack(target, draft, max_draft_tokens=MAX_DRAFT_TOKENS, tree_width=1) as running:
        await ask(running.client, [1, 2, 3], max_tokens=16, ignore_eos=True)
        answer = await ask(running.client, [1, 2, 3], max_tokens=NUM_TOKENS, ignore_eos=True)
    timings = answer.finished.timings
    seconds_per_token = (timings.total_ms - timings.first_token_ms) / 1000.0 / (NUM_TOKENS - 1)
    overlapped = max(DRAFT_STEP_SECONDS, VERIFY_STEP_SECONDS / (MAX_DRAFT_TOKENS + 1))
    synchronous = (MAX_DRAFT_TOKENS * DRAFT_STEP_SECONDS + VERIFY_STEP_SECONDS) / (MAX_DRAFT_TOKENS + 1)
    assert 0.9 * overlapped < seconds_per_token < (overlapped + synchronous) / 2
