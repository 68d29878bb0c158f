"""What two checkouts made of the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console

from bench.against.measuring import Round
from bench.columns import default_console, new_table
from bench.compare.resampling import Interval, compare_passes
from bench.load.answer import Answer

BENCHMARK = "outrider bench against"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one checkout."""

    ms_per_token: float
    first_token_ms: float
    """Median."""
    acceptance_length: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both at one temperature."""

    temperature: float
    num_answers: int
    num_identical: int
    """Answers that are token for token the other's."""
    this: Figures
    other: Figures
    time_ratio: Interval
    """Time per token of this one by that of the other, over the same requests: above 1 this one is slower."""


@dataclass(frozen=True, slots=True)
class Result:
    """The whole comparison."""

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    revisions: Mapping[str, str]
    """What each checkout is at."""
    comparisons: Sequence[Comparison]
    benchmark: str = BENCHMARK
    format: int = FORMAT


def compared(rounds: Sequence[Round]) -> list[Comparison]:
    """What the rounds come to, by temperature."""
    temperatures = dict.fromkeys(each.temperature for each in rounds)
    return [
        _at(temperature, [each for each in rounds if each.temperature == temperature]) for temperature in temperatures
    ]


def _at(temperature: float, rounds: Sequence[Round]) -> Comparison:
    pairs = [list(zip(each.this, each.other, strict=True)) for each in rounds]
    both = [pair for one in pairs for pair in one]
    return Comparison(
        temperature=temperature,
        num_answers=len(both),
        num_identical=sum(list(this.token_ids) == list(other.token_ids) for this, other in both),
        this=_figures([this for this, _ in both]),
        other=_figures([other for _, other in both]),
        # Both answer a request with as many tokens, so that times compare as times per token do.
        time_ratio=compare_passes([[(this.total_ms, other.total_ms) for this, other in one] for one in pairs]),
    )


def _figures(answers: Sequence[Answer]) -> Figures:
    num_tokens = sum(answer.num_tokens for answer in answers)
    return Figures(
        ms_per_token=sum(answer.total_ms for answer in answers) / num_tokens,
        first_token_ms=median(answer.first_token_ms for answer in answers),
        acceptance_length=num_tokens / sum(answer.num_rounds for answer in answers),
    )


def show(result: Result, console: Console | None = None) -> None:
    """A row for each temperature."""
    console = console or default_console()
    settings, revisions = result.settings, result.revisions
    clients = "one client" if settings["num_clients"] == 1 else f"{settings['num_clients']} clients"
    table = new_table(
        f"this ({revisions['this']}) and the other checkout ({revisions['other']}): {settings['target']} and "
        f"{settings['draft']}, {settings['dtype']}, {clients}, {settings['max_tokens']} tokens each",
        *("ms/token", "other's", "this / other", "first", "other's", "a round", "other's", "same"),
    )
    for each in result.comparisons:
        value, low, high = each.time_ratio
        table.add_row(
            "greedy" if each.temperature == 0 else f"temperature {each.temperature:g}",
            *(f"{one.ms_per_token:.3f}" for one in (each.this, each.other)),
            f"{value:.3f} ({low:.3f}-{high:.3f}){'' if low <= 1.0 <= high else ' differs'}",
            *(f"{one.first_token_ms:.1f}" for one in (each.this, each.other)),
            *(f"{one.acceptance_length:.2f}" for one in (each.this, each.other)),
            f"{each.num_identical}/{each.num_answers}",
        )
    console.print(table)
    console.print(
        f"{result.machine['cores']} cores of {result.machine['processor']}.\n"
        "this / other: all time of this one's answers by that of the other's to the same requests, with its 95 % "
        "bootstrap interval over rounds and requests; above 1 this one is slower. first: median time to the first "
        "token, in ms. a round: tokens that it brings. same: answers that are token for token the other's.",
        style="dim",
    )
