"""The table of what is never slower, measured on tiny models beside long prompts and over a network, and what it calls
slower."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.columns import MARK
from bench.compare.quote import misquoted, quote
from bench.load import tables
from bench.load.cells import FLOOR, Result, show
from bench.load.never_slower import ROUNDS_BESIDE_LONG
from bench.load.plots import plot
from bench.load.result import Result as Loads
from bench.load.workload import MEASURED_MIN
from bench.records import as_json, from_json
from tests.bench.loads.conftest import CONCURRENCY, DELAY_MS, LONG, NUM_BLOCKS, Measured

NUM_CLIENTS = max(CONCURRENCY)


@pytest.fixture(scope="module")
def loads(measured: Measured) -> dict[str, Any]:
    """What the cells were made of."""
    return measured.part(("target", "outrider"), lambda each: each["loop"] == "closed")


@pytest.fixture
def result(measured: Measured) -> Result:
    return measured.cells


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


def at(loads: dict[str, Any], delay_ms: float, long_prompt: int) -> dict[str, Any]:
    """The load of NUM_CLIENTS."""
    [found] = [
        each
        for each in loads["results"]
        if (each["load"], each["delay_ms"], each["long_prompt"]) == (NUM_CLIENTS, delay_ms, long_prompt)
    ]
    return found


def test_loads_are_measured_without_and_beside_long_prompts(loads: dict[str, Any]) -> None:
    quiet, beside_long = at(loads, 0.0, 0), at(loads, 0.0, LONG)
    for name in ("target", "outrider"):
        before, now = quiet["modes"][name], beside_long["modes"][name]
        assert "stall" not in before
        assert before["num_answers"] == NUM_BLOCKS * max(NUM_CLIENTS, MEASURED_MIN)
        assert now["num_answers"] == NUM_BLOCKS * NUM_CLIENTS * ROUNDS_BESIDE_LONG
        assert now["num_identical"] == now["num_answers"], "the others' answers stay what they are"
        assert now["num_long_answers"] > 0
        assert now["long_first_token_ms"]["p50"] > 0.0
        found = now["stall"]
        assert found["ratio"] == pytest.approx(now["inter_token_ms"]["p99"] / before["inter_token_ms"]["p99"], rel=0.01)
        assert 0.0 < found["ratio_range"][0] <= found["ratio_range"][1]


def test_loads_are_measured_with_a_network_between(loads: dict[str, Any]) -> None:
    for each in at(loads, DELAY_MS, 0)["modes"].values():
        assert each["num_identical"] == each["num_answers"]
        assert each["first_token_ms"]["p50"] >= 2 * DELAY_MS, "the request there and the token back"


@pytest.fixture
def with_both(loads: dict[str, Any]) -> dict[str, Any]:
    """The loads, as if the one beside long prompts had also been over the network."""
    both = {**at(loads, 0.0, LONG), "delay_ms": DELAY_MS}
    return {**loads, "results": [*loads["results"], both]}


def test_a_table_shows_what_long_prompts_did(with_both: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=118, file=io.StringIO())
    tables.show(from_json(Loads, with_both), console)
    shown = console.export_text()
    assert f"prompts of {LONG} tokens" in shown
    assert "3 clients + long outrider" in shown
    assert "3 clients + long 5 ms outrider" in shown
    assert f"{at(with_both, 0.0, LONG)['modes']['outrider']['stall']['ratio']:.2f} (" in shown
    assert plot(from_json(Loads, with_both), tmp_path)


def test_a_quotation_says_which_load_stood_beside_long_prompts(with_both: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "long.json"
    file.write_text(json.dumps(with_both))
    rows = [line.split(" | ")[:2] for line in quote(file, tmp_path).splitlines() if line.startswith("| 3")]
    beside = f"| 3 beside prompts of {LONG}"
    assert rows == [["| 3", "0"], ["| 3", "5"], [beside, "0"], [beside, "5"]]
