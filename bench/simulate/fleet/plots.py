"""Fleets that grow, as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.compare.plots import DOTS_PER_INCH

_COLOURS = {0: "#6c757d", 1: "#2a6f97", 4: "#61a5c2", 16: "#f4a259"}
"""By verifiers for each coordinator; 0: the targets alone."""

Row = Mapping[str, Any]


def plot(rows: Sequence[Row], folder: Path) -> Path:
    """Writes `fleet.png` to `folder`: throughput, latency and the busiest coordinator by the number of verifiers."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _lines(left, rows, "tokens a second of each verifier", lambda row: row["tokens_per_second"] / _size(row))
    _lines(middle, rows, "ms per token, 99th percentile", lambda row: row["ms_per_token"]["p99"])
    _lines(right, rows, "work of the busiest coordinator", lambda row: row["coordinators_busy"]["max"])
    left.legend(fontsize="small")
    path = folder / "fleet.png"
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _size(row: Row) -> int:
    return row["shape"]["num_verifiers"]


def _lines(axes: Axes, rows: Sequence[Row], title: str, value: Callable[[Row], float]) -> None:
    for ratio, colour in _COLOURS.items():
        here = [row for row in rows if _ratio(row) == ratio]
        label = f"a coordinator for {ratio}" if ratio else "targets alone"
        axes.plot([_size(row) for row in here], [value(row) for row in here], marker=".", color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("verifiers, each with a drafter and 16 clients")
    axes.set_ylabel(title)


def _ratio(row: Row) -> int:
    shape = row["shape"]
    return _size(row) // shape["num_coordinators"] if shape["num_drafters"] else 0
