"""Modes under load, and a soak, on tiny models: services of their own, and what the results say."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.compare.quote import misquoted, quote
from bench.load.options import LoadOptions, SoakOptions
from bench.load.plots import plot
from bench.load.result import Result
from bench.load.run import run
from bench.load.soak import show as show_soak
from bench.load.soak import soak
from bench.load.tables import show
from bench.records import from_json
from bench.rivals.modes import MODES as KNOWN_MODES
from bench.rivals.modes import UnknownModeError
from bench.stack.models import Models
from tests.bench.loads.conftest import MODES, NUM_BLOCKS, NUM_OPEN, OUTPUT_LENGTHS, Measured


@pytest.fixture(scope="module")
def result(measured: Measured) -> dict[str, Any]:
    """All modes, without a network and without long prompts."""
    return measured.part(MODES, lambda each: not each["delay_ms"] and not each["long_prompt"])


def test_the_result_says_what_was_measured(result: dict[str, Any]) -> None:
    assert result["benchmark"] == "outrider bench load"
    assert result["settings"]["num_passes"] == NUM_BLOCKS
    assert result["modes"].keys() == set(MODES)
    assert [(at["loop"], at["load"]) for at in result["results"]] == [("closed", 1), ("closed", 3), ("open", 20.0)]
    assert len(result["answers"]) == NUM_BLOCKS * len(MODES) * 3
    assert sum(len(each["total_ms"]) for each in result["answers"]) == NUM_BLOCKS * len(MODES) * (4 + 4 + NUM_OPEN)


def test_every_mode_wrote_the_targets_own_tokens_under_every_load(result: dict[str, Any]) -> None:
    for at in result["results"]:
        for name, each in at["modes"].items():
            assert each["num_answers"] == NUM_BLOCKS * (NUM_OPEN if at["loop"] == "open" else 4)
            assert each["num_refused"] == each["num_degraded"] == 0
            assert ("num_undrafted" in each) == KNOWN_MODES[name].asks_drafter
            assert each.get("num_undrafted", 0) < each["num_answers"], "a drafter was there"
            assert each["num_identical"] == each["num_answers"], name


def test_summaries_make_sense(result: dict[str, Any]) -> None:
    for at in result["results"]:
        assert at["modes"]["target"]["speed_up"]["ratio"] == 1.0
        for name, each in at["modes"].items():
            assert each["tokens_per_second"] > 0.0
            assert 0.0 <= each["goodput"] <= 1.0
            for measure in ("first_token_ms", "inter_token_ms", "max_gap_ms"):
                found = each[measure]
                assert 0.0 <= found["p50"] <= found["p90"] <= found["p99"]
            for comparison in (each["speed_up"], each.get("advantage_of_ours")):
                if comparison:
                    assert comparison["ratio_95"][0] <= comparison["ratio"] <= comparison["ratio_95"][1]
            assert 1.0 <= each["acceptance_length"] <= max(OUTPUT_LENGTHS)
            assert 1.0 <= each["sessions_per_step"] <= max(at["load"], NUM_OPEN)
            assert each["tokens_per_step"] >= each["sessions_per_step"] * 0.5
            assert 0.0 <= each["kv_use"] <= each["kv_use_max"] <= 1.0
            assert (name == "outrider") == ("advantage_of_ours" not in each)


def test_the_target_alone_scores_no_drafts_and_nobody_pads_but_padded_modes(result: dict[str, Any]) -> None:
    for at in result["results"]:
        assert at["modes"]["target"]["num_draft_tokens"] == 0
        assert at["modes"]["padded_sync_2"]["num_draft_tokens"] > 0
        for name, each in at["modes"].items():
            if not name.startswith("padded") or at["load"] == 1:
                assert each["padding_per_step"] == 0.0, name


def test_tables_and_plots_show_every_mode(result: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=118, file=io.StringIO())
    show(from_json(Result, result), console)
    shown = console.export_text()
    for name in MODES:
        assert f"3 clients {name}" in shown
        assert f"20 requests/s {name}" in shown
    files = plot(from_json(Result, result), tmp_path / "plots")
    assert len(files) == 4
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_a_quotation_is_checked_against_its_file(result: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "bench" / "results" / "load.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(result))
    page = f"# A page\n\n{quote(file, tmp_path)}\n\nText."
    assert misquoted(page, tmp_path) == []
    ratio = f"{result['results'][1]['modes']['padded']['advantage_of_ours']['ratio']:.2f}"
    assert ratio in page
    assert misquoted(page.replace(ratio, "9.99"), tmp_path) == ["bench/results/load.json"]


def test_modes_of_others_cannot_be_put_under_load(models: Models) -> None:
    options = LoadOptions(models=models, modes=("transformers",))
    with pytest.raises(UnknownModeError, match="transformers"):
        run(options, Console(quiet=True))


@pytest.mark.usefixtures("forked")
def test_a_soak_tells_of_memory_refusals_and_what_is_left(models: Models) -> None:
    options = SoakOptions(
        models=models,
        minutes=0.05,
        num_clients=24,
        kv_memory="91kB",
        max_queue=1,
        prompt_lengths=(4, 20),
        output_lengths=(64,),
    )
    result = json.loads(json.dumps(soak(options, Console(quiet=True))))
    assert result["num_answers"] > 0
    assert result["num_refused"] > 0
    assert result["failures"] == {}
    assert result["memory"].keys() == {"verify", "draft", "coordinator 1"}
    assert result["left"].keys() == {"verify", "draft"}
    assert not any(each["leaks"] for each in result["left"].values())
    console = Console(record=True, width=118, file=io.StringIO())
    show_soak(result, console)
    shown = console.export_text()
    assert f"{result['num_refused']} refused" in shown
    assert f"{result['found_bytes_per_answer']:,.0f} bytes with every answer" in " ".join(shown.split())
    assert ("passed" in shown) == result["passed"]
