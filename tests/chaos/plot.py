"""Recovery times by kind of fault as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .services import ROLES

_COLOURS = {"coordinator": "#bc4b51", "verify": "#2a6f97", "draft": "#61a5c2"}

PROMISED_SECONDS = 3.0
"""What p99 of kills is to stay below."""


def plot(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws, for each kind of fault, every recovery time with p50 and p99: `recovery_seconds` of a result."""
    mpl.use("agg")
    names = [name for name in figures if name.split(maxsplit=1)[0] in ROLES and figures[name]["count"]]
    figure = Figure(figsize=(7.5, 1.0 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        every: Sequence[float] = figures[name]["all"]
        colour = _COLOURS[name.split(maxsplit=1)[0]]
        axes.plot(every, [row] * len(every), "|", color=colour, markersize=9, alpha=0.6)
        for share, marker in (("p50", "o"), ("p99", "D")):
            axes.plot(figures[name][share], row, marker, color=colour, markersize=6, markeredgecolor="black")
    axes.axvline(PROMISED_SECONDS, color="#6c757d", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), [f"{name} ({figures[name]['count']})" for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("longest wait of any stream for its next tokens, s (circle: median, diamond: p99)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
