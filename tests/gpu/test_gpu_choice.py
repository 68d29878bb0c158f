"""Captured steps on a device choose their tokens, by the definition, and levels of a draft follow one another there."""

from __future__ import annotations

import asyncio

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")
pytest.importorskip("structlog", reason="workers log by structlog")
pytest.importorskip("llguidance", reason="workers parse grammars by llguidance")
pytest.importorskip("google", reason="workers are services")
pytest.importorskip("grpc", reason="workers are services")
pytest.importorskip("opentelemetry", reason="workers are services")
pytest.importorskip("prometheus_client", reason="workers are services")
pytest.importorskip("pydantic", reason="workers are services")
pytest.importorskip("pydantic_settings", reason="workers are services")

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.engine import Engine
from outrider.engine.gpu.trial import CAPABILITY_MIN
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.sample.sampler import Row, Sampler
from tests.engine.histories import CPU, built, random_line
from tests.engine.test_levels import KINDS, Drafted
from tests.gpu.device import CUDA, never_waiting, on_cuda
from tests.worker.driven import FixedCurve

pytestmark = on_cuda(CAPABILITY_MIN)

NUM_ROWS = 16


def engine_of() -> Engine:
    """As a drafter's worker warms it up."""
    engine = Engine(
        built("llama", CUDA, torch.float32),
        max_sessions=4,
        max_context=128,
        attention="tree",
        captured=True,
        pad_tokens=NUM_ROWS,
    )
    engine.draft_levels()
    assert list(engine.warm_up())
    assert engine.chooses
    assert engine.runs_levels, engine.no_levels
    return engine


def test_a_replayed_step_chooses_by_the_definition() -> None:
    engine = engine_of()
    in_steps = Sampler(engine.vocab_size, 4, CUDA, tables=engine.tables)
    definition = Sampler(engine.vocab_size, 4, CPU)
    slots = [engine.acquire() for _ in KINDS]
    for slot, kind in zip(slots, KINDS, strict=True):
        for sampler in (in_steps, definition):
            sampler.open(slot.index, kind, [], [])
    num_choices = in_steps.num_choices([slot.index for slot in slots])
    assert num_choices == 1
    lines = [random_line(5, seed=seed) for seed in range(len(slots))]
    jobs = [
        Job(slot, line, [LINE_END, 0], [1, 2], range(LINE_END, 2), num_choices=num_choices)
        for slot, line in zip(slots, lines, strict=True)
    ]
    with never_waiting():
        output = engine.step(jobs)
    assert engine.path == "graph+choice"
    rows = [Row(slot.index, 5 + depth) for slot in slots for depth in range(3)]
    assert in_steps.choose(output.logits, rows, best=output.best) == definition.choose(output.logits.cpu(), rows)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=["sampled", "top_k"])
def test_levels_of_one_session_are_those_of_as_many_steps(kind: SamplingParams) -> None:
    async def drafted(*, at_once: bool) -> list[list[tuple[int, ...]]]:
        found = Drafted(engine_of(), (kind,))
        found.drafter.scheduler.policy.estimates.curve = FixedCurve(1e-3, 0.0)
        for _ in range(2):
            found.draft(2, at_once=at_once)
            found.commit(1)
        assert found.num_runs == 2 * at_once
        found.draft(1, at_once=False)
        return [sorted(tree) for tree in found.trees()]

    expected = asyncio.run(drafted(at_once=False))
    assert asyncio.run(drafted(at_once=True)) == expected
    assert len(expected[0]) > NUM_ROWS
