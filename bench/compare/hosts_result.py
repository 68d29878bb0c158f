"""What was measured of a drafter on another host, as it is kept, shown and quoted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.columns import Column, interval, number

BENCHMARK: Final = "bench.compare.hosts"
FORMAT: Final = 1
"""Version of the result's layout."""

FAR: Final = ("outrider", "no_ngram")
"""Modes whose drafter is on the other host: all of it, and without what the verifier guesses by itself, which theory
does not know of."""


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """How many times as fast as the target alone a mode was while it decoded, with a 95 % bootstrap interval."""

    ratio: float
    ratio_95: Sequence[float]


@dataclass(frozen=True, slots=True)
class Expected:
    """How many times as fast theory has it, with acceptance and step times as they were measured."""

    formula: float
    """That of `outrider plan`, for one chain."""
    policies: float
    """The real policies on a virtual clock."""
    in_turn: float
    """Drafting and verifying in turn over the same distance, with the best lookahead."""


@dataclass(frozen=True, slots=True)
class AtDelay:
    """The other host so many milliseconds away."""

    delay_ms: float
    modes: Mapping[str, SpeedUp]
    expected: Expected


@dataclass(frozen=True, slots=True)
class Steps:
    """Milliseconds of one step, with what its worker does between two."""

    verify_ms: float
    draft_ms: float


@dataclass(frozen=True, slots=True)
class AtTemperature:
    """All distances at one temperature."""

    temperature: float
    alpha: float
    """How often the target's token was the draft's first guess."""
    target_ms: float
    """Of the target alone, for each token."""
    steps: Steps
    roofline: float
    """What no distance exceeds by guesses of a chain."""
    here: Mapping[str, SpeedUp]
    """Of modes without a drafter elsewhere."""
    delays: Sequence[AtDelay]

    @property
    def colocated(self) -> SpeedUp:
        """The best of drafting in the verifier's process."""
        return max(self.here.values(), key=lambda each: each.ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run of the measurement."""

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    held_back_by: str
    """What made messages late: netem, or relays."""
    results: Sequence[AtTemperature]
    benchmark: str = BENCHMARK
    format: int = FORMAT


def title(at: AtTemperature) -> str:
    """What a table is about, and what all of its rows share."""
    return (
        f"temperature {at.temperature:g}: acceptance {at.alpha:.2f}, target alone {at.target_ms:.1f} ms/token, steps "
        f"of {at.steps.verify_ms:.1f} and {at.steps.draft_ms:.2f} ms; in one process x {at.colocated.ratio:.2f}, "
        f"roofline x {at.roofline:.1f}"
    )


def columns(at: AtTemperature) -> Sequence[Column[AtDelay]]:
    """Measured, expected, and without distance."""

    def measured(mode: str) -> Column[AtDelay]:
        return Column(mode, lambda each: each.modes[mode], _ratio, mode, _ratio_on_page)

    return [
        *map(measured, FAR),
        Column("policies", lambda each: each.expected.policies, number(2), "policies on a virtual clock"),
        Column("formula", lambda each: each.expected.formula, number(2), "formula of `outrider plan`"),
        Column("in turn", lambda each: each.expected.in_turn, number(2), "in turn, by formula"),
        Column("in one process", lambda each: at.colocated.ratio, number(2), "in one process, measured"),
    ]


def rows(at: AtTemperature) -> Iterator[tuple[str, AtDelay]]:
    """By distance."""
    return ((f"{each.delay_ms:g} ms", each) for each in at.delays)


def _ratio(found: SpeedUp) -> str:
    return interval(found.ratio, found.ratio_95)


def _ratio_on_page(found: SpeedUp) -> str:
    return interval(found.ratio, found.ratio_95, " to ")
