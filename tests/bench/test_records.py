"""Results are kept and read without a loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.compare import result as compare
from bench.load import result as load
from bench.records import as_json, from_json

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
KINDS: dict[str, Any] = {compare.BENCHMARK: compare.Result, load.BENCHMARK: load.Result}


def kept() -> list[Any]:
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    return [content for content in contents if content.get("benchmark") in KINDS]


@pytest.mark.parametrize("content", kept())
def test_a_kept_result_is_written_as_it_was_read(content: dict[str, Any]) -> None:
    assert as_json(from_json(KINDS[content["benchmark"]], content)) == content


def test_there_are_kept_results_of_both_kinds() -> None:
    assert {content["benchmark"] for content in kept()} == KINDS.keys()


def test_what_lacks_a_figure_is_no_record() -> None:
    with pytest.raises(KeyError, match="ratio_95"):
        from_json(load.Ratio, {"ratio": 1.0})
