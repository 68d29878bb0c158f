"""The table of what is never slower, measured on tiny models, and what it calls slower."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.compare.quote import misquoted, quote
from bench.load.cells import FLOOR, MARK, Result, show
from bench.load.never_slower import measure
from bench.load.options import NeverSlowerOptions
from bench.records import as_json, from_json
from bench.stack.models import Models
from tests.e2e.stack import save_tiny
from tests.engine.tiny_models import build

DELAY_MS, LONG, NUM_BLOCKS = 5.0, 40, 2


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("models")
    models = Models(
        target=str(save_tiny(build("llama", layers=2), folder / "target")),
        draft=str(save_tiny(build("llama"), folder / "draft")),
        dtype="float32",
        compile="off",
    )
    options = NeverSlowerOptions(
        models=models,
        mlp_widths=(0,),
        temperatures=(0.8,),
        concurrency=(1, 3),
        delays_ms=(0.0, DELAY_MS),
        long_prompt=LONG,
        num_blocks=NUM_BLOCKS,
    )
    return measure(options, Console(quiet=True))


def test_every_load_has_its_cell(result: Result) -> None:
    assert [(cell.num_clients, cell.delay_ms, cell.long_prompt) for cell in result.cells] == [
        *((1, 0.0, 0), (3, 0.0, 0)),
        *((1, DELAY_MS, 0), (3, DELAY_MS, 0)),
        *((1, 0.0, LONG), (3, 0.0, LONG)),
    ]
    assert result.settings["num_passes"] == NUM_BLOCKS
    for cell in result.cells:
        low, high = cell.ratio_95
        assert low <= cell.ratio <= high
        assert cell.num_identical == cell.num_answers >= NUM_BLOCKS * 4
        assert cell.tokens_per_second.keys() == {"target", "outrider"}


def test_the_table_is_shown_and_quoted(result: Result, tmp_path: Path) -> None:
    console = Console(record=True, width=118, file=io.StringIO())
    show(result, console)
    shown = console.export_text()
    assert "as it is, T 0.8, 3 clients" in shown
    assert "5 ms" in shown
    assert f"beside {LONG}" in shown
    file = tmp_path / "never-slower.json"
    file.write_text(json.dumps(as_json(result)))
    page = quote(file, tmp_path)
    assert misquoted(page, tmp_path) == []
    assert f"{result.cells[0].ratio:.2f} (" in page


@pytest.mark.parametrize(("high", "is_slower"), [(FLOOR - 0.001, True), (FLOOR, False), (1.2, False)])
def test_slower_is_what_lies_below_the_floor_with_all_of_its_interval(
    result: Result, high: float, is_slower: bool
) -> None:
    judged = replace(result, cells=[replace(result.cells[0], ratio=0.9, ratio_95=(0.5, high))])
    assert bool(judged.slower) == is_slower
    console = Console(record=True, width=118, file=io.StringIO())
    show(judged, console)
    assert (f"){MARK}" in console.export_text()) == is_slower


def test_a_result_survives_json(result: Result) -> None:
    written: Any = json.loads(json.dumps(as_json(result)))
    assert as_json(from_json(Result, written)) == written
