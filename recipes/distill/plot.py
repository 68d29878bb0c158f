"""Acceptance before and after, as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from recipes.distill.acceptance import Measured

DOTS_PER_INCH = 150

_COLOURS = ("#2a6f97", "#f4a259", "#5b8e7d", "#b8bec5")
"""Of temperatures, in order."""


def plot(before: Measured, after: Measured, path: Path) -> None:
    """Draws the part of rounds that accept as many guesses, by depth: a panel for each way of drafting."""
    mpl.use("agg")
    figure = Figure(figsize=(5.5 * len(after), 4), layout="constrained")
    panels = figure.subplots(1, len(after), squeeze=False)[0]
    for axes, (way, of) in zip(panels, after.items(), strict=True):
        for colour, (temperature, found) in zip(_COLOURS, of.items(), strict=False):
            depths = list(range(1, len(found.num_accepted) + 1))
            axes.set_xticks(depths)
            axes.plot(depths, found.by_depth, marker="o", color=colour, label=f"T {temperature:g}, after")
            if way in before:
                earlier = before[way][temperature].by_depth
                axes.plot(depths, earlier, marker=".", color=colour, linestyle=":", label=f"T {temperature:g}, before")
        axes.set_title(way)
        axes.set_ylim(0.0, 1.0)
        axes.set_xlabel("depth")
        axes.set_ylabel("rounds that accepted as many")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=DOTS_PER_INCH)
