"""From passes to the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.compare.result import OURS, REFERENCE
from bench.load.measuring import Pass, Point
from bench.load.objective import Objective
from bench.load.result import About, Answers, AtLoad, Result, Summary
from bench.load.summary import answers_of, compare, stall, summarize
from bench.records import as_json, from_json, rounded
from bench.rivals.modes import Mode


def report(
    passes: Sequence[Pass],
    modes: Sequence[Mode],
    objective: Objective,
    *,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> Result:
    """The whole result."""
    results = [_at(point, passes, modes, objective) for point in dict.fromkeys(each.point for each in passes)]
    return Result(
        machine=machine,
        settings={**settings, "num_passes": 1 + max(each.number for each in passes)},
        modes={mode.name: About(mode.about) for mode in modes},
        results=[from_json(AtLoad, rounded(as_json(each))) for each in results],
        answers=[from_json(Answers, rounded(as_json(answers_of(each)))) for each in passes],
    )


def _at(point: Point, passes: Sequence[Pass], modes: Sequence[Mode], objective: Objective) -> AtLoad:
    of = {mode.name: _of(mode, point, passes) for mode in modes}
    summaries: dict[str, Summary] = {}
    for mode in modes:
        name, own = mode.name, of[mode.name]
        summaries[name] = replace(
            summarize(own, of[REFERENCE], objective, asks_drafter=mode.asks_drafter),
            advantage_of_ours=compare(own, of[OURS]) if OURS in of and name != OURS else None,
            stall=stall(_of(mode, point._replace(long_prompt=0), passes), own) if point.long_prompt else None,
        )
    return AtLoad(**point._asdict(), modes=summaries)


def _of(mode: Mode, point: Point, passes: Sequence[Pass]) -> list[Pass]:
    found = [each for each in passes if (each.mode, each.point) == (mode.name, point)]
    return sorted(found, key=lambda each: each.number)
