"""Modes are compared at each temperature and each delay; other systems, which have no network within, at none."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from bench.compare.asking import Source
from bench.compare.measuring import Condition, measure
from bench.compare.report import report
from bench.compare.sample import Round, Sample
from bench.compare.tables import show
from bench.rivals.modes import MODES, Mode
from outrider.client import SamplingParams

TEMPERATURES, DELAYS_MS = (0.0, 0.8), (0.0, 5.0)
RIVAL = Mode(name="rival", about="another system", external=True, version="some 1.0: --fast")


@dataclass
class Played:
    """Answers in a set time."""

    total_ms: float

    async def ask(self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int) -> Sample:
        return Sample(
            first_token_ms=1.0, total_ms=self.total_ms, rounds=[Round(1), Round(max_tokens - 1)], token_ids=[7] * 4
        )


async def test_each_condition_has_its_own_comparison() -> None:
    sources: dict[float, dict[str, Source]] = {
        0.0: {"target": Played(8.0), "outrider": Played(4.0), "rival": Played(16.0)},
        5.0: {"target": Played(18.0), "outrider": Played(20.0)},
    }
    measured = await measure(
        sources, [[1], [2]], TEMPERATURES, max_tokens=4, num_warm_ups=1, on_progress=lambda each: None
    )
    assert {each.condition for each in measured} == {Condition(t, d) for t in TEMPERATURES for d in DELAYS_MS}
    settings = {"target": "t", "draft": "d", "dtype": "float32", "num_prompts": 2, "max_tokens": 4}
    machine = {"cores": 2, "processor": "p", "round_trip_ms": 0.1}
    modes = [MODES["target"], MODES["outrider"], RIVAL]
    result = report(measured, modes, coverage={t: [0.5] * 2 for t in TEMPERATURES}, settings=settings, machine=machine)
    for at in result.results:
        ratio = at.modes["outrider"].speed_up
        assert ratio is not None
        assert ratio.ratio_of_sums == (0.9 if at.delay_ms else 2.0)
        assert ("rival" in at.modes) == (at.delay_ms is None)
    console = Console(record=True, width=118, file=io.StringIO())
    show(result, console)
    shown = console.export_text()
    assert "temperature 0.8, messages 5 ms late: 2 prompts" in shown
    assert "rival: some 1.0: --fast" in shown
