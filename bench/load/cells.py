"""The table of `never_slower.py`: a ratio with its interval for each load, and a verdict on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from bench.columns import MARK, Column, default_console, in_terminal, interval

BENCHMARK = "outrider bench never-slower"
FORMAT = 1

FLOOR = 0.98
"""Least throughput by that of the target alone: two hundredths are what such a table can tell from nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One load."""

    mlp_width: int
    """Of the target; 0: as it is."""
    temperature: float
    num_clients: int
    delay_ms: float
    long_prompt: int
    ratio: float
    """Throughput by that of the target alone."""
    ratio_95: Sequence[float]
    num_answers: int
    num_identical: int
    """Answers that are token for token the target's."""
    tokens_per_second: Mapping[str, float]

    @property
    def is_slower(self) -> bool:
        """Whether all of the interval lies below the floor."""
        return self.ratio_95[1] < FLOOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Settings, machine, and every cell."""

    benchmark: str = BENCHMARK
    format: int = FORMAT
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    cells: Sequence[Cell]

    @property
    def slower(self) -> list[Cell]:
        """The cells that fail."""
        return [cell for cell in self.cells if cell.is_slower]


Row = Mapping[str, Cell]
"""The cells of one target, temperature and number of clients, by the network or what stands beside."""


def sections(result: Result) -> Iterator[list[tuple[str, Row]]]:
    """The table: for each target a section, with a row for each temperature and number of clients."""
    for mlp_width in dict.fromkeys(cell.mlp_width for cell in result.cells):
        target = f"MLP {mlp_width}" if mlp_width else "as it is"
        found: dict[str, dict[str, Cell]] = {}
        for cell in result.cells:
            if cell.mlp_width == mlp_width:
                clients = "1 client" if cell.num_clients == 1 else f"{cell.num_clients} clients"
                row = f"{target}, T {cell.temperature:g}, {clients}"
                found.setdefault(row, {})[_column(cell)] = cell
        yield list(found.items())


def columns(result: Result) -> list[Column[Row]]:
    """One for each network, and one for long prompts."""
    names = dict.fromkeys(_column(cell) for cell in result.cells)
    return [Column[Row](name, lambda row, name=name: row.get(name), _shown, name) for name in names]


def _column(cell: Cell) -> str:
    return f"beside {cell.long_prompt}" if cell.long_prompt else f"{cell.delay_ms:g} ms"


def _shown(cell: Cell) -> str:
    return f"{interval(cell.ratio, cell.ratio_95)}{MARK if cell.is_slower else ''}"


def heading(result: Result) -> str:
    """What the table is of, in a line."""
    settings = result.settings
    identical = sum(cell.num_identical for cell in result.cells)
    return (
        f"{settings['target']} and {settings['draft']}, {settings['dtype']}: throughput of {settings['mode']} by that "
        f"of the target alone, {settings['num_passes']} blocks of each; {identical} of "
        f"{sum(cell.num_answers for cell in result.cells)} answers are token for token the target's"
    )


def legend(result: Result) -> str:
    """What the columns are, and what fails."""
    return (
        f"{len(result.slower)} of {len(result.cells)} cells are slower ({MARK}): all of their 95 % bootstrap interval, "
        f"which draws blocks and requests within them, lies below {FLOOR}. MLP: width of the target's. ms: so much "
        "longer take messages between coordinator and workers, each way. beside: one more client asks one prompt of so "
        "many tokens after another."
    )


def show(result: Result, console: Console | None = None) -> None:
    """The table, and what fails."""
    console = console or default_console()
    console.print(in_terminal(heading(result), columns(result), *sections(result)))
    console.print(legend(result), style="dim", markup=False)
