"""Speed-up over distance as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.compare.hosts_result import AtTemperature
from bench.compare.plots import DOTS_PER_INCH

_MODES = {"outrider": ("#2a6f97", "outrider"), "no_ngram": ("#61a5c2", "without the verifier's own guesses")}
_EXPECTED = {
    "policies": ("#f4a259", "policies on a virtual clock"),
    "formula": ("#bc4b51", "formula of outrider plan"),
    "in_turn": ("#b8bec5", "in turn over this distance, by formula"),
}
_COLOCATED, _ALONE = "#6c757d", "#1d1f21"


def plot(results: Sequence[AtTemperature], folder: Path) -> Path:
    """Writes `hosts.png` to `folder`, a panel for each temperature."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    figure = Figure(figsize=(6.0 * len(results), 4.2), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, at in zip(panels, results, strict=True):
        _draw(axes, at)
    panels[0].set_ylabel("times as fast as the target alone")
    panels[0].legend(fontsize="small")
    path = folder / "hosts.png"
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _draw(axes: Axes, at: AtTemperature) -> None:
    delays = [each.delay_ms for each in at.delays]
    for mode, (colour, label) in _MODES.items():
        found = [each.modes[mode] for each in at.delays]
        errors = [
            [each.ratio - each.ratio_95[0] for each in found],
            [each.ratio_95[1] - each.ratio for each in found],
        ]
        axes.errorbar(delays, [each.ratio for each in found], errors, color=colour, marker="o", capsize=3, label=label)
    for name, (colour, label) in _EXPECTED.items():
        values = [getattr(each.expected, name) for each in at.delays]
        axes.plot(delays, values, color=colour, linestyle="--", marker=".", label=label)
    axes.axhline(at.colocated.ratio, color=_COLOCATED, linestyle="-.", label="drafting in one process, measured")
    axes.axhline(1.0, color=_ALONE, linewidth=0.8, linestyle=":", label="the target alone")
    axes.set_title("greedy" if at.temperature == 0.0 else f"temperature {at.temperature:g}")
    axes.set_xlabel("milliseconds to the drafter's host, one way")
    axes.set_ylim(bottom=0.0)
