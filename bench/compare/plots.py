"""Results as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.compare.columns import MS_PER_TOKEN, SPEED_UP
from bench.compare.result import OURS, REFERENCE, Result, Summary

DOTS_PER_INCH = 150

_OURS, _OTHERS, _REFERENCE = "#2a6f97", "#b8bec5", "#6c757d"
_PARTS = {
    "verify": ("#2a6f97", "verify step"),
    "verifier_outside": ("#61a5c2", "verifier's own work"),
    "verifier_idle": ("#f4a259", "verifier idle"),
    "edges": ("#b8bec5", "way in and out"),
}

Rows = Sequence[tuple[str, Summary]]


def plot(result: Result, folder: Path) -> list[Path]:
    """Writes what there is to see in `result` to `folder` as PNG. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    pictures = {"time_per_token": _times, "speed_up": _speed_ups, "rounds": _rounds, "acceptance": _acceptance}
    return [
        _saved(
            folder / f"{name}_T{at.temperature:g}{f'_{at.delay_ms:g}ms' if at.delay_ms else ''}.png",
            list(result.best_modes(at)),
            draw,
        )
        for at in result.results
        for name, draw in pictures.items()
    ]


def _saved(path: Path, rows: Rows, draw: Callable[[Axes, Rows], None]) -> Path:
    figure = Figure(figsize=(8, 1.5 + 0.4 * len(rows)), layout="constrained")
    draw(figure.subplots(), rows)
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _colour(title: str) -> str:
    return _OURS if title == OURS else _REFERENCE if title == REFERENCE else _OTHERS


def _times(axes: Axes, rows: Rows) -> None:
    titles = [title for title, _ in rows]
    bars = axes.barh(titles, [MS_PER_TOKEN.get(each) for _, each in rows], color=list(map(_colour, titles)))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(f"{MS_PER_TOKEN.title}, reading the prompt included")
    axes.margins(x=0.12)


def _speed_ups(axes: Axes, rows: Rows) -> None:
    for index, (title, each) in enumerate(rows):
        ratio = each.speed_up
        if ratio is not None:
            colour = _colour(title)
            axes.plot(ratio.ratio_of_sums_95, [index, index], color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot(ratio.ratio_of_sums, index, "o", color=colour)
    axes.axvline(1.0, color=_REFERENCE, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"{SPEED_UP.title}, with 95 % bootstrap interval")


def _rounds(axes: Axes, rows: Rows) -> None:
    logged = [(title, each.devices.round_ms, each.acceptance_length) for title, each in rows if each.devices]
    titles = [title for title, _, _ in logged]
    left = [0.0] * len(logged)
    for name, (colour, label) in _PARTS.items():
        # Per token, so that a longer round which brings more tokens does not look worse.
        widths = [getattr(parts, name) / num_tokens for _, parts, num_tokens in logged]
        axes.barh(titles, widths, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(MS_PER_TOKEN.title)
    axes.legend(fontsize="small")


def _acceptance(axes: Axes, rows: Rows) -> None:
    for title, each in rows:
        shares = each.speculation.accepted_at_depth if each.speculation else ()
        if shares:
            width = 2.5 if title == OURS else 1.2
            axes.plot(range(1, len(shares) + 1), shares, marker=".", linewidth=width, label=title)
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("depth")
    axes.set_ylabel("rounds that accepted as many")
    if axes.lines:
        axes.legend(fontsize="small")
