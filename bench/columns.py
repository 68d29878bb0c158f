"""Columns of results: what each is called, where its value comes from and how it is written; and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDTH = 118
"""Columns where the output is not a terminal's: as many as the widest table needs."""

MARK = "!"
"""Behind a figure that misses its goal."""

Row = TypeVar("Row")
Rows = Iterable[tuple[str, Row]]
"""What a table shows, and what each row is called."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One figure of a row."""

    heading: str
    """In the terminal: short, for the legend explains it."""
    get: Callable[[Row], Any]
    """None: there is none, and nothing is written."""
    show: Callable[[Any], str] = str
    title: str = ""
    """On a page and at an axis."""
    on_page: Callable[[Any], str] | None = None
    """How a page shows it; None: like the terminal."""


def number(digits: int) -> Callable[[float], str]:
    """Writes numbers with so many digits after the point."""
    return lambda value: f"{value:.{digits}f}"


def share(value: float) -> str:
    """A share in percent."""
    return f"{value:.0%}"


def interval(value: float, bounds: Sequence[float], between: str = "-") -> str:
    """An estimate and its interval."""
    low, high = bounds
    return f"{value:.2f} ({low:.2f}{between}{high:.2f})"


def in_terminal(title: str, columns: Sequence[Column[Row]], *sections: Rows[Row]) -> Table:
    """A table of a row for each row, parted by a line where a section ends."""
    table = new_table(title, *(column.heading for column in columns))
    for section in sections:
        table.add_section()
        for name, row in section:
            values = [(column, column.get(row)) for column in columns]
            table.add_row(name, *("" if value is None else column.show(value) for column, value in values))
    return table


def as_markdown(corner: str, columns: Sequence[Column[Row]], rows: Rows[Row]) -> str:
    """The same for a page; `corner` stands above the rows' names."""
    lines = [[corner, *(column.title for column in columns)]]
    for name, row in rows:
        values = [(column, column.get(row)) for column in columns]
        lines.append(
            [name, *("" if value is None else (column.on_page or column.show)(value) for column, value in values)]
        )
    heading, *body = [f"| {' | '.join(line)} |\n" for line in lines]
    return "".join([heading, f"|{'---|' * len(lines[0])}\n", *body])


def new_table(title: str, *headings: str) -> Table:
    """A table whose first column names what the others are about."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def default_console() -> Console:
    """Standard output, wide enough for every table where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
