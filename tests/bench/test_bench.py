"""A whole measurement on tiny models: services of its own, every kind of mode, and what is made of the result."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.compare.options import BenchOptions
from bench.compare.plots import plot
from bench.compare.quote import NotAResultError, misquoted, quote, quotes
from bench.compare.result import Result
from bench.compare.run import run
from bench.compare.tables import show
from bench.records import as_json, from_json
from bench.rivals.modes import MODES, OPEN_GATE, UnknownModeError, choose_modes
from bench.stack.models import Models
from tests.e2e.stack import save_tiny
from tests.engine.tiny_models import build

ROOT = Path(__file__).resolve().parents[2]
MODE_NAMES = (
    *("target", "outrider", "no_tree", "no_wait", "no_choice", "no_ngram", "no_outcomes", "no_rhythm", "ngram_alone"),
    *("sync_2", "sync_3", "colocated_2", "colocated_3", "amusd", "pearl_3", "transformers", "transformers_assisted"),
)
NUM_PROMPTS, MAX_TOKENS, TEMPERATURES = 2, 12, (0.0, 0.8)


@pytest.fixture(scope="module")
def result(forked: None, unhurried: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    target, draft = build("llama", layers=2), build("llama")
    prompts = folder / "prompts.txt"
    prompts.write_text("A1B2C3\n---\nZZTop")
    options = BenchOptions(
        models=Models(
            target=str(save_tiny(target, folder / "target")),
            draft=str(save_tiny(draft, folder / "draft")),
            dtype="float32",
            compile="off",
        ),
        modes=MODE_NAMES,
        prompts=prompts,
        num_prompts=NUM_PROMPTS,
        num_warm_ups=1,
        max_tokens=MAX_TOKENS,
        temperatures=TEMPERATURES,
    )
    return json.loads(json.dumps(as_json(asyncio.run(run(options, Console(quiet=True))))))


def test_the_result_says_what_was_measured(result: dict[str, Any]) -> None:
    assert result["benchmark"] == "outrider bench"
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["round_trip_ms"] > 0.0
    assert result["settings"]["target"] == "target"
    assert result["settings"]["dtype"] == "float32"
    assert result["modes"].keys() == set(MODE_NAMES)
    assert [at["temperature"] for at in result["results"]] == list(TEMPERATURES)
    assert len(result["answers"]) == len(MODE_NAMES) * NUM_PROMPTS * len(TEMPERATURES)


def test_every_mode_wrote_the_targets_own_tokens(result: dict[str, Any]) -> None:
    for at in result["results"]:
        for name, each in at["modes"].items():
            assert each["num_answers"] == NUM_PROMPTS
            assert each["num_tokens"] == NUM_PROMPTS * MAX_TOKENS
            if at["temperature"] == 0.0 or not MODES[name].external:
                assert each["identity"]["num_identical"] == NUM_PROMPTS, name
            else:
                assert each["identity"] is None


def test_summaries_are_complete_and_make_sense(result: dict[str, Any]) -> None:
    for at in result["results"]:
        assert at["best"]["sync"] in ("sync_2", "sync_3")
        assert at["best"]["colocated"] in ("colocated_2", "colocated_3")
        covered = at["coverage"]
        assert covered == sorted(covered)
        assert 0.0 <= covered[0] <= covered[-1] <= 1.0
        assert at["modes"]["target"]["speed_up"]["ratio_of_sums"] == 1.0
        for name, each in at["modes"].items():
            low, high = each["speed_up"]["ratio_of_sums_95"]
            assert low <= each["speed_up"]["ratio_of_sums"] <= high
            assert each["ms_per_token"] > 0.0
            if MODES[name].external:
                continue
            assert each["num_degraded"] == 0
            if OPEN_GATE in MODES[name].coordinator:
                assert each["undrafted"] == {}, "every answer had its drafter"
            assert each["num_accepted_tokens"] <= each["num_draft_tokens"]
            assert 0.0 <= each["overlap"] <= min(each["verify_busy"], each["draft_busy"]) + 1e-3
            in_sequence = ("verify", "verifier_outside", "verifier_idle", "edges")
            per_token = sum(each["round_ms"][part] for part in in_sequence) / each["acceptance_length"]
            assert per_token == pytest.approx(each["ms_per_token"], rel=0.01)


def test_rivals_followed_their_rules(result: dict[str, Any]) -> None:
    for at in result["results"]:
        modes = at["modes"]
        assert modes["target"]["num_drafted_nodes"] == 0
        for family, lookahead in itertools.product(("sync", "colocated"), (2, 3)):
            each = modes[f"{family}_{lookahead}"]
            # All but each answer's first round, and those near its end, score as many drafts as they look ahead.
            assert each["num_draft_tokens"] <= lookahead * each["num_rounds"]
            assert each["num_draft_tokens"] >= lookahead * (each["num_rounds"] - 4 * NUM_PROMPTS)
            assert each["num_draft_tokens"] > 0
        assert modes["colocated_2"]["overlap"] == 0.0, "in turn"
        assert modes["colocated_2"]["draft_busy"] > 0.0
        assert modes["colocated_2"]["num_wasted_nodes"] >= 0, "drafts that come by no message are counted"
        assert modes["pearl_3"]["num_draft_tokens"] <= 2 * modes["pearl_3"]["num_rounds"]
        assert modes["no_tree"]["num_drafted_nodes"] > 0


def test_tables_and_plots_show_every_mode(result: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    show(from_json(Result, result), console)
    shown = console.export_text()
    best = {at["best"][family] for at in result["results"] for family in ("sync", "colocated")}
    in_families = {name for name in MODE_NAMES if MODES[name].family in ("sync", "colocated")}
    for name in {*MODE_NAMES} - in_families | best:
        assert name in shown
    files = plot(from_json(Result, result), tmp_path / "plots")
    assert len(files) == 4 * len(TEMPERATURES)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_a_quotation_is_checked_against_its_file(result: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "bench" / "results" / "some.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(result))
    quoted = quote(file, tmp_path)
    page = f"# A page\n\n{quoted}\n\nText."
    assert [each.source for each in quotes(page)] == ["bench/results/some.json"]
    assert misquoted(page, tmp_path) == []
    ms = f"{result['results'][0]['modes']['outrider']['ms_per_token']:.2f}"
    assert misquoted(page.replace(ms, "0.01", 1), tmp_path) == ["bench/results/some.json"]


def test_a_page_says_how_many_answers_of_another_system_are_the_targets_own(
    result: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "some.json"
    modes = {**result["modes"], "transformers": {**result["modes"]["transformers"], "version": "some 1.0: --flag"}}
    file.write_text(json.dumps({**result, "modes": modes}))
    quoted = quote(file, tmp_path)
    assert f"token for token, greedy: transformers {NUM_PROMPTS} of {NUM_PROMPTS}.\n" in quoted
    assert quoted.count("token for token") == 1, "drawn with other noise answers are other ones"
    assert "\ntransformers: some 1.0: --flag\n" in quoted


def test_a_result_from_elsewhere_is_quoted_by_its_path(result: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "some where" / "some.json"
    file.parent.mkdir()
    file.write_text(json.dumps(result))
    page = quote(file, ROOT)
    assert [each.source for each in quotes(page)] == [file.as_posix()]
    assert misquoted(page, ROOT) == []


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"benchmark": "outrider bench", "format": 0}'])
def test_what_is_no_result_cannot_be_quoted(tmp_path: Path, content: str) -> None:
    file = tmp_path / "some.json"
    file.write_text(content)
    with pytest.raises(NotAResultError, match=r"some\.json"):
        quote(file, tmp_path)


@pytest.mark.parametrize("page", ["README.md", "bench/README.md", "docs/performance.md"])
def test_pages_quote_results_as_they_are(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("<!-- quoted from") == len(list(quotes(text))), "a quotation has no end"
    assert misquoted(text, ROOT) == []


def test_modes_by_name_family_and_group() -> None:
    assert [mode.name for mode in choose_modes(["outrider"])] == ["target", "outrider"]
    assert {mode.name for mode in choose_modes(["sync"])} == {"target"} | {
        name for name, mode in MODES.items() if mode.family == "sync"
    }
    assert {mode.name for mode in choose_modes(["all"])} == MODES.keys()
    with pytest.raises(UnknownModeError, match="there are default"):
        choose_modes(["nonsense"])
