"""The drafter on another host: what theory expects of distances, and the picture of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.compare.hosts import expected
from bench.compare.hosts_plot import plot
from bench.compare.hosts_result import AtDelay, AtTemperature, Expected, Result, SpeedUp, Steps
from bench.compare.quote import quote
from bench.records import as_json

STEPS = Steps(verify_ms=20.0, draft_ms=1.0)


def test_expectations_fall_with_the_distance_and_count_a_rounds_longer_steps() -> None:
    near, far = (expected(0.8, STEPS, 16.0, delay_ms) for delay_ms in (0.0, 20.0))
    # A verify step of a round takes 20 ms where the target alone takes 16 for a token: 0.2 + 0.8 / 20 of them a token.
    assert near.formula == pytest.approx(16.0 / 20.0 / 0.24)
    assert far.formula == pytest.approx(16.0 / 20.0 / (0.2 * 2.6 + 0.04))
    assert near.policies > far.policies > 0.0
    assert near.in_turn > far.in_turn
    assert near.policies == pytest.approx(near.formula, rel=0.3)


@pytest.fixture
def results() -> list[AtTemperature]:
    delays = [
        AtDelay(
            delay_ms,
            {"outrider": SpeedUp(4.0, (3.5, 4.5)), "no_ngram": SpeedUp(3.0, (2.8, 3.1))},
            Expected(3.0, 2.9, 2.0),
        )
        for delay_ms in (0.0, 5.0)
    ]
    colocated = {"colocated_2": SpeedUp(1.5, (1.4, 1.6)), "colocated_8": SpeedUp(2.0, (1.9, 2.1))}
    return [AtTemperature(each, 0.8, 16.0, STEPS, 4.0, colocated, delays) for each in (0.0, 0.8)]


def test_the_picture_has_a_panel_for_each_temperature(results: list[AtTemperature], tmp_path: Path) -> None:
    assert plot(results, tmp_path).stat().st_size > 10_000


def test_a_page_quotes_what_was_kept_with_the_best_of_one_process(results: list[AtTemperature], tmp_path: Path) -> None:
    machine = {"cores": 2, "processor": "a processor", "torch": "2.13.0"}
    settings = {"target": "target", "draft": "draft", "dtype": "bfloat16", "num_prompts": 2, "max_tokens": 24}
    kept = Result(machine=machine, settings=settings, held_back_by="relays", results=results)
    (tmp_path / "hosts.json").write_text(json.dumps(as_json(kept)))
    quoted = quote(tmp_path / "hosts.json", tmp_path)
    assert quoted.count("| 5 ms | 4.00 (3.50 to 4.50) | 3.00 (2.80 to 3.10) | 2.90 | 3.00 | 2.00 | 2.00 |") == 2
    assert "messages held back by relays" in quoted
