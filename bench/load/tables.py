"""A result under load as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from bench.columns import default_console, in_terminal
from bench.compare.result import OURS, REFERENCE, drawn
from bench.load.columns import SPEED, STALLS, STEPS, TIMES, Stalled
from bench.load.result import AtLoad, Result, Summary


def show(result: Result, console: Console | None = None) -> None:
    """For each temperature and kind of load three tables: speed, when tokens came, and what the verifier did; and a
    fourth of what long prompts did to others, if there were any."""
    console = console or default_console()
    for shown in result.kinds():
        sections = [list(_rows(at)) for at in shown]
        console.print(in_terminal(heading(result.settings, shown[0].temperature), SPEED, *sections))
        came = "When tokens came, in ms: the first one, those after it, and the longest that nothing came"
        console.print(in_terminal(came, TIMES, *sections))
        console.print(in_terminal("What the verifier did", STEPS, *sections))
        if stalled := [at for at in shown if at.long_prompt]:
            longest = max(at.long_prompt for at in stalled)
            title = (
                f"What prompts of {longest} tokens, one after another, did to the others: times between tokens in ms"
            )
            quiet = {(at.load, at.delay_ms): at.modes for at in shown if not at.long_prompt}
            sections = [_stalled(at, quiet[at.load, at.delay_ms]) for at in stalled]
            console.print(in_terminal(title, STALLS, *sections))
    console.print(_legend(result), style="dim")


def heading(settings: Mapping[str, Any], temperature: float) -> str:
    """What was asked, in a line."""
    prompts, outputs = (_choice(settings[name]) for name in ("prompt_lengths", "output_lengths"))
    return (
        f"{settings['target']} and {settings['draft']}, {settings['dtype']}, {drawn(temperature)}: prompts of "
        f"{prompts} tokens, answers of {outputs}, {settings['num_passes']} passes"
    )


def _choice(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths[:-1])) + (" or " if lengths[1:] else "") + str(lengths[-1])


def _rows(at: AtLoad) -> Iterator[tuple[str, Summary]]:
    clients = "clients" if at.loop == "closed" else "requests/s"
    late = f" {at.delay_ms:g} ms" if at.delay_ms else ""
    for name, each in at.modes.items():
        yield f"{at.load:g} {clients}{' + long' if at.long_prompt else ''}{late} {name}", each


def _stalled(at: AtLoad, quiet: Mapping[str, Summary]) -> list[tuple[str, Stalled]]:
    rows = zip(_rows(at), at.modes, strict=True)
    return [(title, Stalled(each, quiet[name])) for (title, each), name in rows]


def _legend(result: Result) -> str:
    machine, settings = result.machine, result.settings
    objective = settings["objective"]
    return (
        f"{machine['cores']} cores of {machine['processor']}; a message to a worker and back: "
        f"{machine['round_trip_ms']:.2f} ms.\n"
        f"x {REFERENCE}: throughput by that of the target alone under the same load. {OURS} x: throughput of {OURS} by "
        "that of this one. Both with 95 % bootstrap intervals over passes and requests; where requests come by "
        "themselves, of the times of answers instead. good: answers with at most "
        f"{objective['first_token_ms']:g} ms to the first token and a mean of {objective['inter_token_ms']:g} ms "
        "between tokens. alone: answers without a drafter from beginning to end, though one was wanted. "
        "same: answers that are token for token the target's. between: tokens of one round share the "
        "time since the round before. a round: tokens that it brings. sessions, tokens, padding: in a step that gave "
        "verdicts. busy: share of time in such steps. room: share of the room for keys and values that sessions hold. "
        "cached: tokens of prompts that had been read for others."
        + (_LATE if any(settings.get("delays_ms", ())) else "")
        + (" x without: over all passes, and the least and largest of one." if settings.get("long_prompt") else "")
    )


_LATE = " ms: messages between coordinator and workers take so much longer each way."
