"""`python -m bench.simulate.gate`: what the speculation gate costs beside always going the better way, load by load."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer import Option

from bench.columns import Column, as_markdown, default_console, in_terminal, number, share
from bench.simulate.gate.world import Pair, World
from outrider.core.estimate.speculation_gate import SpeculationGate

PAIRS: Final[Mapping[str, Pair]] = {
    "bundled, sampled": Pair(1.6, {1: 1.07, 4: 0.93, 8: 0.83}),
    "the same at 605e924": Pair(1.6, {1: 1.34, 4: 1.12, 16: 0.9}),
    "bundled, greedy": Pair(2.9, {1: 2.48, 4: 1.51, 16: 1.11, 64: 0.9}),
    "wide, sampled": Pair(2.2, {1: 2.15, 4: 1.2, 8: 0.91}),
    "half as fast": Pair(1.6, {1: 1.0, 8: 0.5}),
}
"""Gains as measured (`docs/performance.md`), but that with 4 clients of the first and the fourth, and the last."""

MARKS: Final = (512, 1024, 4096)
BEFORE_TOKENS: Final = 1024
NUM_BLOCKS: Final = 8

Scenario = Callable[[World], Sequence[float]]
"""Seconds to each mark."""

COLUMNS: Final = (
    *(
        Column[Mapping[str, Any]](
            f"{mark}", lambda row, place=place: row["ratios"][place], number(3), title=f"first {mark} tokens"
        )
        for place, mark in enumerate(MARKS)
    ),
    Column[Mapping[str, Any]]("gain", lambda row: row["gain"], number(2), title="gain"),
    Column[Mapping[str, Any]]("open", lambda row: row["share_open"], share, title="tokens while open"),
)


def lasting(num_clients: int, *nums_before: int) -> Scenario:
    """A load that lasts, after such of `nums_before` clients."""

    def run(world: World) -> Sequence[float]:
        for num_before in nums_before:
            world.last(num_before, (BEFORE_TOKENS,))
        world.num_tokens = world.num_tokens_open = 0
        return world.last(num_clients, MARKS)

    return run


def blocks(num_clients: int) -> Scenario:
    """Blocks in which each client asks once and blocks of one client, by turns, after one block that does not count: as
    in `outrider bench never-slower`."""

    def run(world: World) -> Sequence[float]:
        world.block(num_clients)
        world.num_tokens = world.num_tokens_open = 0
        seconds = 0.0
        for _ in range(NUM_BLOCKS):
            world.block(1)
            seconds += world.block(num_clients)
        return [seconds] * len(MARKS)

    return run


def measure(pair: Pair, scenario: Scenario, num_seeds: int, *, greedy: bool) -> dict[str, Any]:
    """Time by that of the better way, and what speculation gains, in the mean of so many runs."""
    totals: dict[bool | None, list[float]] = {}
    num_tokens = num_open = 0
    for way in (None, True, False):
        runs: list[Sequence[float]] = []
        for seed in range(num_seeds):
            world = World(pair, random.Random(seed), SpeculationGate(), way, greedy)
            runs.append(scenario(world))
            if way is None:
                num_tokens += world.num_tokens
                num_open += world.num_tokens_open
        totals[way] = [sum(times) for times in zip(*runs, strict=True)]
    ratios = [gated / min(ways) for gated, *ways in zip(totals[None], totals[True], totals[False], strict=True)]
    gain = totals[False][-1] / totals[True][-1]
    return {"ratios": ratios, "gain": gain, "share_open": num_open / num_tokens}


def main(
    seeds: Annotated[int, Option(help="Runs of each row.", min=1)] = 50,
    as_json: Annotated[Path | None, Option("--json", help="Write the result to this file.", metavar="FILE")] = None,
    markdown: Annotated[bool, Option("--markdown", help="Print a table for a page.")] = False,
) -> None:
    """Time by that of the better way at that load, over the first tokens of a load that lasts, and in blocks."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for name, pair in PAIRS.items():
        scenarios = {f"{clients}": lasting(clients) for clients in (1, 4, 8, 16)}
        scenarios |= {f"{clients} after 1": lasting(clients, 1) for clients in (4, 8, 16)}
        scenarios["8 after 1 and 4"] = lasting(8, 1, 4)
        scenarios["8 in blocks"] = blocks(8)
        for about, scenario in scenarios.items():
            rows.append((f"{name}: {about}", measure(pair, scenario, seeds, greedy="greedy" in name)))
    if markdown:
        print(as_markdown("clients", COLUMNS, rows))
    else:
        default_console().print(in_terminal("clients: time by that of the better way, first tokens", COLUMNS, rows))
    if as_json is not None:
        as_json.write_text(json.dumps(dict(rows), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
