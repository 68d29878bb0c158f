"""From passes to the result that is shown, kept and quoted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.compare.report import OURS, REFERENCE, rounded
from bench.load.measuring import Pass, Point
from bench.load.objective import Objective
from bench.load.summary import answers_as_json, compare, identity, stall, summarize
from bench.rivals.modes import Mode

BENCHMARK = "outrider bench load"
FORMAT = 1
"""Version of the result's layout."""


def report(
    passes: Sequence[Pass],
    modes: Sequence[Mode],
    objective: Objective,
    *,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole result as what JSON can hold: settings, machine, a summary of each mode at each point, every answer."""
    every_point = list(dict.fromkeys(each.point for each in passes))
    return {
        "benchmark": BENCHMARK,
        "format": FORMAT,
        "machine": dict(machine),
        "settings": {**settings, "num_passes": 1 + max(each.number for each in passes)},
        "modes": {mode.name: {"about": mode.about} for mode in modes},
        "results": [rounded(_at(point, passes, modes, objective)) for point in every_point],
        "answers": rounded(answers_as_json(passes)),
    }


def _at(point: Point, passes: Sequence[Pass], modes: Sequence[Mode], objective: Objective) -> dict[str, Any]:
    of = {mode.name: _of(mode, point, passes) for mode in modes}
    summaries: dict[str, dict[str, Any]] = {}
    for mode in modes:
        name, own = mode.name, of[mode.name]
        summaries[name] = summarize(own, objective) | {
            "num_identical": identity(own, of[REFERENCE]),
            "speed_up": compare(of[REFERENCE], own),
        }
        if OURS in of and name != OURS:
            summaries[name]["advantage_of_ours"] = compare(own, of[OURS])
        if point.long_prompt:
            summaries[name]["stall"] = stall(_of(mode, point._replace(long_prompt=0), passes), own)
    return {**point._asdict(), "modes": summaries}


def _of(mode: Mode, point: Point, passes: Sequence[Pass]) -> list[Pass]:
    found = [each for each in passes if (each.mode, each.point) == (mode.name, point)]
    return sorted(found, key=lambda each: each.number)
