"""A result under load as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.compare.plots import DOTS_PER_INCH
from bench.compare.result import OURS, REFERENCE
from bench.load.result import AtLoad, Result
from bench.rivals.modes import PADDED

EMS_SD = {
    "ragged": {1: 3.94, 8: 2.17, 16: 1.63, 24: 1.41},
    "padded": {1: 3.94, 8: 1.37, 16: 0.83, 24: 0.66},
}
"""Speed-up over plain decoding by batch size, as EMS-SD reports it for OPT-6.7B (arXiv 2405.07542): the shape to
compare with, of another model on another machine."""

_COLOURS = {OURS: "#2a6f97", PADDED: "#bc4b51", REFERENCE: "#6c757d", "no_tree": "#61a5c2"}
_OTHERS = "#b8bec5"

Points = Sequence[AtLoad]


def plot(result: Result, folder: Path) -> list[Path]:
    """Writes what there is to see in `result` to `folder` as PNG. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    files: list[Path] = []
    for temperature in dict.fromkeys(at.temperature for at in result.results):
        here = [at for at in result.results if at.temperature == temperature and not at.long_prompt and not at.delay_ms]
        closed = sorted((at for at in here if at.loop == "closed"), key=lambda at: at.load)
        opened = sorted((at for at in here if at.loop == "open"), key=lambda at: at.load)
        suffix = f"T{temperature:g}.png"
        if closed:
            files.append(_saved(folder / f"load_speed_up_{suffix}", closed, [_speed_ups]))
            files.append(_saved(folder / f"load_times_{suffix}", closed, [_first_tokens, _inter_tokens]))
        if opened:
            files.append(_saved(folder / f"load_goodput_{suffix}", opened, [_goodput]))
            files.append(_saved(folder / f"load_times_by_rate_{suffix}", opened, [_first_tokens, _inter_tokens]))
    return files


def _saved(path: Path, points: Points, drawers: Sequence[Callable[[Axes, Points], None]]) -> Path:
    figure = Figure(figsize=(6.5 * len(drawers), 4.2), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(drawers), squeeze=False)[0], drawers, strict=True):
        draw(axes, points)
        axes.set_xlabel("clients" if points[0].loop == "closed" else "requests per second")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _speed_ups(axes: Axes, points: Points) -> None:
    for name in points[0].modes:
        found = [(at.load, ratio) for at in points if (ratio := at.modes[name].speed_up)]
        if name == REFERENCE or not found:
            continue
        ratios = [each.ratio for _, each in found]
        below = [each.ratio - each.ratio_95[0] for _, each in found]
        above = [each.ratio_95[1] - each.ratio for _, each in found]
        loads = [load for load, _ in found]
        axes.errorbar(loads, ratios, yerr=[below, above], color=_colour(name), marker="o", capsize=3, label=name)
    for name, ratios in EMS_SD.items():
        colour = _COLOURS[OURS if name == "ragged" else PADDED]
        label = f"EMS-SD, {name} (OPT-6.7B, as reported)"
        axes.plot(list(ratios), list(ratios.values()), color=colour, alpha=0.4, linestyle="--", marker=".", label=label)
    axes.axhline(1.0, color=_COLOURS[REFERENCE], linewidth=1, linestyle=":")
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("throughput, times that of the target alone")


def _first_tokens(axes: Axes, points: Points) -> None:
    _percentiles(axes, points, "first_token_ms")
    axes.set_ylabel("ms to the first token")


def _inter_tokens(axes: Axes, points: Points) -> None:
    _percentiles(axes, points, "inter_token_ms")
    axes.set_ylabel("ms between tokens")


def _percentiles(axes: Axes, points: Points, measure: str) -> None:
    for name in points[0].modes:
        found = [(at.load, times) for at in points if (times := getattr(at.modes[name], measure))]
        for percentile, line in (("p50", "-"), ("p99", ":")):
            values = [getattr(each, percentile) for _, each in found]
            loads = [load for load, _ in found]
            axes.plot(loads, values, color=_colour(name), linestyle=line, marker=".", label=f"{name} {percentile}")
    axes.set_ylim(bottom=0.0)


def _goodput(axes: Axes, points: Points) -> None:
    for name in points[0].modes:
        shares = [at.modes[name].goodput for at in points]
        axes.plot([at.load for at in points], shares, color=_colour(name), marker="o", label=name)
    axes.set_ylim(0.0, 1.05)
    axes.set_ylabel("answers that were soon enough")


def _colour(name: str) -> str:
    return _COLOURS.get(name, _OTHERS)
