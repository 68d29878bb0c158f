"""A result as tables in the terminal."""

from __future__ import annotations

from rich.console import Console

from bench.columns import default_console, in_terminal
from bench.compare.columns import SPECULATION, SPEED, TIME
from bench.compare.result import OURS, REFERENCE, Result, drawn


def show(result: Result, console: Console | None = None) -> None:
    """Three tables for each temperature: speed, what speculation did, and where the time went."""
    console = console or default_console()
    settings, machine = result.settings, result.machine
    for at in result.results:
        shown = list(result.best_modes(at))
        heading = (
            f"{settings['target']} and {settings['draft']}, {settings['dtype']}, "
            f"{drawn(at.temperature, at.delay_ms)}: {settings['num_prompts']} prompts, "
            f"{settings['max_tokens']} tokens each\n"
            "the target's token is among the draft's first 1, 2, ... guesses: "
            + " ".join(f"{share:.2f}" for share in at.coverage)
        )
        console.print(in_terminal(heading, SPEED, shown))
        console.print(in_terminal("What speculation did", SPECULATION, shown))
        logged = [(title, each) for title, each in shown if each.devices is not None]
        console.print(in_terminal("Where a round's time goes, in ms", TIME, logged))
    for line in (*result.without_drafter(), *result.likenesses(), *result.versions()):
        console.print(line, style="dim", markup=False)
    console.print(
        f"{machine['cores']} cores of {machine['processor']}; a message to a worker and back: "
        f"{machine['round_trip_ms']:.2f} ms.\n{_LEGEND}",
        style="dim",
    )


_LEGEND = (
    f"x {REFERENCE}: times faster than the target alone on the same engine. {OURS} x: how much faster {OURS} is than "
    "this one. Both: ratio of all time, with its 95 % bootstrap interval over prompts. roofline: share reached of "
    "max(c, 1 - alpha) for a chain, of 1 - alpha' for a tree. same: answers that are token for token the target's. "
    "right: tested drafts that were the target's choice. hits: rejections whose place the tree already held with the "
    "target's token. alone: answers without a drafter from beginning to end. overlap: share of time in which "
    "both devices compute, by the workers' logs. A round's time is verify + own + idle + in/out; "
    "drafting runs beside it."
)
