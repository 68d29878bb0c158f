"""Results as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.compare.report import OURS, REFERENCE, best_modes

DOTS_PER_INCH = 150

_OURS, _OTHERS, _REFERENCE = "#2a6f97", "#b8bec5", "#6c757d"
_PARTS = {
    "verify": ("#2a6f97", "verify step"),
    "verifier_outside": ("#61a5c2", "verifier's own work"),
    "verifier_idle": ("#f4a259", "verifier idle"),
    "edges": ("#b8bec5", "way in and out"),
}
_SCHEME_COLOURS = {
    "outrider": "#2a6f97",
    "outrider_chain": "#61a5c2",
    "sync": "#6c757d",
    "amusd": "#f4a259",
    "pearl": "#bc4b51",
}


def plot(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes what there is to see in `result`, of either kind, to `folder` as PNG. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    if "points" in result:
        return _plot_plane(result, folder)
    files: list[Path] = []
    for at in result["results"]:
        suffix = f"T{at['temperature']:g}.png"
        shown = [(title, at["modes"][name]) for name, title in best_modes(result, at)]
        files += [
            _saved(folder / f"time_per_token_{suffix}", len(shown), lambda axes, rows=shown: _times(axes, rows)),
            _saved(folder / f"speed_up_{suffix}", len(shown), lambda axes, rows=shown: _speed_ups(axes, rows)),
            _saved(folder / f"rounds_{suffix}", len(shown), lambda axes, rows=shown: _rounds(axes, rows)),
            _saved(folder / f"acceptance_{suffix}", len(shown), lambda axes, rows=shown: _acceptance(axes, rows)),
        ]
    return files


Rows = Sequence[tuple[str, Mapping[str, Any]]]


def _saved(path: Path, num_rows: int, draw: Callable[[Axes], None]) -> Path:
    figure = Figure(figsize=(8, 1.5 + 0.4 * num_rows), layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _colour(title: str) -> str:
    return _OURS if title == OURS else _REFERENCE if title == REFERENCE else _OTHERS


def _times(axes: Axes, rows: Rows) -> None:
    titles = [title for title, _ in rows]
    values = [each["ms_per_token"] for _, each in rows]
    bars = axes.barh(titles, values, color=[_colour(title) for title in titles])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("ms per token, reading the prompt included")
    axes.margins(x=0.12)


def _speed_ups(axes: Axes, rows: Rows) -> None:
    for index, (title, each) in enumerate(rows):
        comparison = each["speed_up"]
        if not comparison:
            continue
        low, high = comparison["ratio_of_sums_95"]
        axes.plot([low, high], [index, index], color=_colour(title), linewidth=3, solid_capstyle="butt")
        axes.plot(comparison["ratio_of_sums"], index, "o", color=_colour(title))
    axes.axvline(1.0, color=_REFERENCE, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the target alone, with 95 % bootstrap interval")


def _rounds(axes: Axes, rows: Rows) -> None:
    rows = [(title, each) for title, each in rows if "round_ms" in each]
    titles = [title for title, _ in rows]
    left = [0.0] * len(rows)
    for name, (colour, label) in _PARTS.items():
        # Per token, so that a longer round which brings more tokens does not look worse.
        widths = [each["round_ms"][name] / each["acceptance_length"] for _, each in rows]
        axes.barh(titles, widths, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms per token")
    axes.legend(fontsize="small")


def _acceptance(axes: Axes, rows: Rows) -> None:
    for title, each in rows:
        shares = each.get("accepted_at_depth")
        if shares:
            width = 2.5 if title == OURS else 1.2
            axes.plot(range(1, len(shares) + 1), shares, marker=".", linewidth=width, label=title)
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("depth")
    axes.set_ylabel("rounds that accepted as many")
    if axes.lines:
        axes.legend(fontsize="small")


def _plot_plane(result: Mapping[str, Any], folder: Path) -> list[Path]:
    points = result["points"]
    files: list[Path] = []
    for delay in sorted({point["delay"] for point in points}):
        here = [point for point in points if point["delay"] == delay]
        for other in ("sync", "amusd", "pearl"):
            path = folder / f"plane_outrider_by_{other}_delay{delay:g}.png"
            files.append(_heat_map(here, path, f"outrider against {other}, delay {delay:g}", _ratio_to(other)))
        path = folder / f"plane_outrider_delay{delay:g}.png"
        files.append(_heat_map(here, path, f"outrider against the target alone, delay {delay:g}", _speed_up))
        files.append(_curves(here, folder / f"speed_up_by_acceptance_delay{delay:g}.png", delay))
    return files


def _ratio_to(other: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda point: point["speed_up"]["outrider"] / point["speed_up"][other]


def _speed_up(point: Mapping[str, Any]) -> float:
    return point["speed_up"]["outrider"]


def _heat_map(
    points: Sequence[Mapping[str, Any]], path: Path, title: str, value: Callable[[Mapping[str, Any]], float]
) -> Path:
    alphas = sorted({point["alpha"] for point in points})
    steps = sorted({point["draft_step"] for point in points})
    of = {(point["alpha"], point["draft_step"]): value(point) for point in points}
    grid = [[of[alpha, step] for step in steps] for alpha in alphas]
    figure = Figure(figsize=(1.5 + len(steps), 1.5 + 0.7 * len(alphas)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="RdYlBu", vmin=0.5, vmax=max(1.5, *map(max, grid)))
    for row, values in enumerate(grid):
        for column, each in enumerate(values):
            axes.text(column, row, f"{each:.2f}", ha="center", va="center")
    axes.set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.set_xlabel("draft step, in verify steps (c)")
    axes.set_ylabel("acceptance per token (alpha)")
    axes.set_title(title)
    figure.colorbar(image, label="times faster")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _curves(points: Sequence[Mapping[str, Any]], path: Path, delay: float) -> Path:
    steps = sorted({point["draft_step"] for point in points})
    figure = Figure(figsize=(3.2 * len(steps), 3.4), layout="constrained")
    for axes, step in zip(figure.subplots(1, len(steps), squeeze=False)[0], steps, strict=True):
        here = sorted((point for point in points if point["draft_step"] == step), key=lambda point: point["alpha"])
        alphas = [point["alpha"] for point in here]
        for scheme, colour in _SCHEME_COLOURS.items():
            axes.plot(alphas, [point["speed_up"][scheme] for point in here], marker=".", color=colour, label=scheme)
        sync = [1.0 / point["theory"]["sync"] for point in here]
        bound = [1.0 / point["theory"]["chain_bound"] for point in here]
        axes.plot(alphas, sync, color=_SCHEME_COLOURS["sync"], linestyle=":", label="sync by theory")
        axes.plot(alphas, bound, color="black", linewidth=0.8, linestyle="--", label="bound of a chain")
        axes.set_title(f"c = {step:g}, delay {delay:g}")
        axes.set_xlabel("alpha")
    figure.axes[0].set_ylabel("times faster than the target alone")
    figure.axes[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path
