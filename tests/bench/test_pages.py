"""Tables that pages have of results with a form of their own: the figures are those of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


def rows_of(page: str, heading: str) -> list[str]:
    """The rows of the only table of the page that begins so."""
    _, table = (ROOT / "docs" / page).read_text(encoding="utf-8").split(f"\n{heading}")
    return table.partition("\n\n")[0].splitlines()[2:]


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def test_what_the_pool_is_worth_to_vllm() -> None:
    def row(name: str, arm: dict[str, Any]) -> str:
        drafted = arm["num_draft_tokens"] > 0
        return cells(
            name,
            f"{arm['ms_per_token_median']:.2f}",
            ", ".join(f"{each:.2f}" for each in arm["ms_per_token"]),
            f"{arm['tokens_per_step']:.2f}",
            f"{arm['acceptance_rate']:.3f}" if drafted else "–",  # noqa: RUF001  the page's own dash
            f"{arm['acceptance_length']:.2f}" if drafted else "–",  # noqa: RUF001
        )

    kept = result("vllm-pool.json")
    names = ("vLLM alone", "vLLM with the draft model", "vLLM with the pool")
    assert rows_of("vllm.md", "| | ms per token, median |") == [*map(row, names, kept["arms"].values())]
    assert set(kept["texts_equal"].values()) == {1.0}, "every answer was that of vLLM alone"


def test_how_far_fleets_scale() -> None:
    def row(fleet: dict[str, Any]) -> str:
        shape, sessions = fleet["shape"], fleet["sessions_per_verifier"]
        times = [f"{fleet['ms_per_token'][each]:.3g}" for each in ("p50", "p99")]
        fewest, most = sessions["min"], sessions["max"]
        return cells(
            f"{shape['num_verifiers']} + {shape['num_drafters']}",
            str(shape["num_coordinators"]),
            f"{fleet['tokens_per_second'] / shape['num_verifiers']:.0f}",
            ", ".join(times),
            str(most) if fewest == most else f"{fewest} to {most}",
            f"{fleet['coordinators_busy']['max'] * 100:.0f} %",
        )

    told = rows_of("experiments/scale.md", "| verifiers + drafters |")
    assert told
    assert set(told) <= {row(fleet) for fleet in result("fleet.json")["rows"] if not fleet["faults"]}
