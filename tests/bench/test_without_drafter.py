"""Answers without a drafter: the benchmark gives no coordinator a wrong reason for one, and shows those there are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.compare.asking import CoordinatorSource
from bench.compare.measuring import Condition, Measured, sampling_of, sources_of
from bench.compare.report import report
from bench.compare.sample import Round, Sample
from bench.compare.tables import show
from bench.rivals.modes import MODES, Mode
from bench.stack.models import Models
from bench.stack.services import running
from outrider.cli.board import Board
from outrider.core.coordinate.placement import REPORTS_MIN
from tests.e2e.stack import save_tiny
from tests.engine.tiny_models import build

BUSY, LEFT = "no draft service can be used (it is busy)", "the worker was left"
SLOW, FAST = 12.0, 2.0
"""Milliseconds of a drafter's passes and of a target's: with another session the drafter would be too slow."""


def sample(mode: str, reason: str = "") -> Sample:
    statistics: dict[str, Any] = {"mode": mode, "mode_reason": reason}
    return Sample(first_token_ms=1.0, total_ms=2.0, rounds=[Round(2), Round(1)], token_ids=[1], statistics=statistics)


def test_they_are_counted_by_why_and_shown() -> None:
    modes = [MODES["target"], MODES["sync_2"], MODES["sync_3"]]
    samples = {
        "target": [sample("target_only")] * 3,
        "sync_2": [sample("target_only", LEFT), sample("target_only", BUSY), sample("target_only", BUSY)],
        "sync_3": [sample("speculative"), sample("speculative"), sample("degraded", "it was lost")],
    }
    measured = [
        Measured(name, Condition(0.0), prompt, each)
        for name, answers in samples.items()
        for prompt, each in enumerate(answers)
    ]
    settings = {"target": "t", "draft": "d", "dtype": "float32", "num_prompts": 3, "max_tokens": 3}
    machine = {"cores": 2, "processor": "a processor", "round_trip_ms": 1.0}
    result = report(measured, modes, coverage={0.0: [1.0] * 8}, settings=settings, machine=machine)
    found = {name: each.speculation for name, each in result.results[0].modes.items()}
    assert {name: each and (each.undrafted, each.num_degraded) for name, each in found.items()} == {
        "target": ({}, 0),
        "sync_2": ({LEFT: 1, BUSY: 2}, 0),
        "sync_3": ({}, 1),
    }
    lines = list(result.without_drafter())
    assert lines == [
        f"3 of 3 answers of sync_2, greedy, had no drafter: {BUSY}; other reasons: 1.",
        "1 of 3 answers of sync_3, greedy, lost their drafter.",
    ]
    console = Console(record=True, width=200, file=io.StringIO())
    show(result, console)
    shown = console.export_text()
    assert all(line in shown for line in lines)


async def test_modes_in_turn_find_a_slow_drafter_idle(forked: None, unhurried: None, tmp_path: Path) -> None:
    """Each has a coordinator of its own, which hears late that the session of the other one has ended."""
    models = Models(
        target=str(save_tiny(build("llama", layers=2), tmp_path / "target")),
        draft=str(save_tiny(build("llama"), tmp_path / "draft")),
        dtype="float32",
        compile="off",
    )
    modes = [MODES["no_tree"], MODES["sync_2"]]
    console = Console(quiet=True)
    with Board(console, show_logs=False).watching() as board:
        async with running(modes, models, board) as stack:

            def ask(mode: Mode) -> CoordinatorSource:
                return CoordinatorSource(stack.client(mode))

            sources = sources_of(stack, modes, ask, 0.0)
            forcing = {"alpha": 0.9, "num_positions": 100, "width": 1, "seed": 1}
            await stack.pair(modes[0]).force(verify={**forcing, "step_ms": FAST}, draft={**forcing, "step_ms": SLOW})
            for _ in range(REPORTS_MIN + 2):
                for source in sources.values():
                    answer = await source.ask([5, 6, 7, 8], sampling_of(0.0, 0), 8)
                    assert answer.undrafted == ""
                    assert answer.statistics["mode"] == "speculative"
