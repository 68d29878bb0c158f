"""The map of the plane: its result, its pictures, and real services beside it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.compare.plane_plots import plot
from bench.compare.plane_tables import show
from bench.simulate import confirm
from bench.simulate.synthetic import OURS, SCHEMES, SYNC, Point, map_plane
from bench.stack.models import Models
from outrider.cli.child import Observer
from tests.e2e.stack import save_tiny
from tests.engine.tiny_models import build

pytestmark = pytest.mark.usefixtures("forked")


def test_a_small_map(tmp_path: Path) -> None:
    result = json.loads(json.dumps(map_plane((0.6, 0.8), (0.1, 0.35), (0.0, 0.5), num_tokens=100)))
    assert len(result["points"]) == 8
    for point in result["points"]:
        assert point["speed_up"].keys() == SCHEMES.keys()
        assert point["theory"]["sync"] > point["theory"]["chain_bound"]
    console = Console(record=True, width=200, file=io.StringIO())
    show(result, console)
    assert all(scheme in console.export_text(clear=False) for scheme in SCHEMES)
    files = plot(result, tmp_path)
    assert len(files) == 10
    assert all(file.stat().st_size > 1000 for file in files)


async def test_forced_guesses_come_true_on_real_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules are a matter for benchmarks. Here: everything runs, and speculation with these odds pays at all."""
    target, draft = (save_tiny(build("llama"), tmp_path / name) for name in ("target", "draft"))
    models = Models(target=str(target), draft=str(draft), dtype="float32", compile="off")
    monkeypatch.setattr(confirm, "NUM_TOKENS", 40)
    monkeypatch.setattr(confirm, "SCHEMES", (OURS, SYNC))  # tests/bench/test_bench.py has the others' rules on services
    [point] = await confirm.confirm(models, Observer(), [Point(alpha=1.0, draft_step=0.25, delay=0.1)])
    assert point["on_services"].keys() == point["on_virtual_clock"].keys() == {OURS, SYNC}
    assert all(speed_up > 0.0 for speed_up in point["on_services"].values())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_limits_of_acceptance(alpha: float) -> None:
    result = map_plane((alpha,), (0.2,), (0.0,), num_tokens=100)
    speed_up = result["points"][0]["speed_up"]
    assert (speed_up["sync"] > 1.0) is (alpha == 1.0)
