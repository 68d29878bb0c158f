"""The plane of speculation as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.compare.plots import DOTS_PER_INCH

_SCHEME_COLOURS = {
    "outrider": "#2a6f97",
    "outrider_chain": "#61a5c2",
    "sync": "#6c757d",
    "amusd": "#f4a259",
    "pearl": "#bc4b51",
}


def plot(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes maps and curves of a plane to `folder` as PNG. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
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
