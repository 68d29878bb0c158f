"""Whether speculation is ever slower than the target alone: targets, temperatures, loads, networks, long prompts.

Of each load a block of both modes follows the other, in the order A B B A, so that a machine whose speed drifts does so
for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.compare.result import REFERENCE
from bench.load.cells import Cell, Result
from bench.load.measuring import Point, Sweep
from bench.load.options import LoadOptions, NeverSlowerOptions
from bench.load.result import AtLoad
from bench.load.run import run
from bench.records import as_json, from_json, rounded
from bench.stack.preparing import prepared, widened

ROUNDS_BESIDE_LONG = 2
"""How often each client asks in a block beside long prompts: one request might find none of them."""


def measure(options: NeverSlowerOptions, console: Console) -> Result:
    """Measures one target after another. Raises OutriderError."""
    models = prepared(options.models, console)
    cells: list[Cell] = []
    machine: Mapping[str, Any] = {}
    settings: dict[str, Any] = {}
    for mlp_width in options.mlp_widths:
        target = Path(models.target)
        if mlp_width:
            target = widened(target, mlp_width, console)
        load_options = LoadOptions(
            models=replace(models, target=str(target)),
            modes=(options.mode,),
            concurrency=options.concurrency,
            minutes=0.0,
            temperatures=options.temperatures,
            delays_ms=options.delays_ms,
            long_prompt=options.long_prompt,
        )
        found = run(load_options, console, sweep_of(options))
        machine, settings = found.machine, {**settings, **found.settings}
        cells += [_cell(at, options.mode, mlp_width) for at in found.results]
    settings |= {"target": Path(models.target).name, "mlp_widths": options.mlp_widths, "mode": options.mode}
    return from_json(Result, rounded(as_json(Result(machine=machine, settings=settings, cells=cells))))


def sweep_of(options: NeverSlowerOptions) -> Sweep:
    """Every load with every delay, and beside long prompts without one."""
    ways = [(delay_ms, 0) for delay_ms in options.delays_ms]
    ways += [(0.0, options.long_prompt)] if options.long_prompt and 0.0 in options.delays_ms else []
    points = [
        Point("closed", num_clients, temperature, long_prompt, delay_ms)
        for delay_ms, long_prompt in ways
        for temperature in options.temperatures
        for num_clients in options.concurrency
    ]
    return Sweep(points, lambda point: ROUNDS_BESIDE_LONG if point.long_prompt else 1, options.num_blocks)


def _cell(at: AtLoad, mode: str, mlp_width: int) -> Cell:
    ours, speed_up = at.modes[mode], at.modes[mode].speed_up
    assert speed_up is not None, "a closed loop's answers are complete, or the run has failed"
    return Cell(
        mlp_width=mlp_width,
        temperature=at.temperature,
        num_clients=round(at.load),
        delay_ms=at.delay_ms,
        long_prompt=at.long_prompt,
        ratio=speed_up.ratio,
        ratio_95=speed_up.ratio_95,
        num_answers=ours.num_answers,
        num_identical=ours.num_identical,
        tokens_per_second={name: at.modes[name].tokens_per_second for name in (REFERENCE, mode)},
    )
