"""Progress of a run on the terminal: a bar for each stage."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int, float | None], None]
"""Called after each step with the steps done, the steps in all, and the step's loss, if it trained anything."""


def progress_bars(console: Console) -> Progress:
    """One bar per stage: steps, loss, time so far and time left."""
    return Progress(
        TextColumn("{task.description:6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps{task.fields[loss]}, elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def reporter(bars: Progress, name: str) -> Report:
    """A report that moves a bar of that name, which appears with the first step."""
    task: TaskID | None = None

    def report(step: int, num_steps: int, loss: float | None) -> None:
        nonlocal task
        shown = "" if loss is None else f", loss {loss:.3f}"
        if task is None:
            task = bars.add_task(name, total=num_steps, completed=step - 1, loss=shown)
        bars.update(task, completed=step, loss=shown)

    return report
