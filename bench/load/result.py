"""The result of a measurement under load, as it is shown, kept and quoted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.records import FLAT, named

BENCHMARK = "outrider bench load"
FORMAT = 1
"""Version of the result's layout."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a distribution, by nearest rank."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long the same requests took, with its 95 % bootstrap interval."""

    ratio: float
    ratio_95: Sequence[float]


@dataclass(frozen=True, slots=True)
class Stall:
    """The 99th percentile of times between tokens beside long prompts, by that without."""

    ratio: float
    ratio_range: Sequence[float]
    """The least and the largest of one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Means over the verifier's steps that gave verdicts."""

    step_ms: float
    """Median."""
    sessions_per_step: float
    tokens_per_step: float
    padding_per_step: float
    busy: float
    """Share of time in such steps."""


@dataclass(frozen=True, slots=True)
class Room:
    """The verifier's own reports."""

    kv_use: float
    """Share of the KV cache that sessions hold, on average."""
    kv_use_max: float
    num_queued_max: int


@dataclass(frozen=True, slots=True)
class LongPrompts:
    """Answers to the long prompts beside which the others were asked."""

    num_long_answers: int
    long_first_token_ms: Percentiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One mode under one load."""

    num_answers: int
    num_refused: int
    num_degraded: int
    """Answers whose drafter was lost on the way."""
    num_undrafted: int | None = None
    """Answers that no drafter guessed for though one was wanted; None where there is none, or nobody counted them."""
    num_tokens: int
    tokens_per_second: float
    goodput: float
    first_token_ms: Percentiles | None
    inter_token_ms: Percentiles | None
    max_gap_ms: Percentiles | None
    acceptance_length: float | None
    num_draft_tokens: int
    num_accepted_tokens: int
    num_cached_prompt_tokens: int
    num_steps: int
    steps: Steps | None = field(default=None, metadata=FLAT)
    room: Room | None = field(default=None, metadata=FLAT)
    long_prompts: LongPrompts | None = field(default=None, metadata=FLAT)
    num_identical: int
    """Answers that are token for token the target's."""
    speed_up: Ratio | None
    """Over the target alone."""
    advantage_of_ours: Ratio | None = None
    stall: Stall | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AtLoad:
    """All modes under one load."""

    loop: Literal["closed", "open"]
    load: float
    temperature: float
    long_prompt: int = 0
    delay_ms: float = 0.0
    """How much longer messages between a coordinator and its workers take each way."""
    modes: Mapping[str, Summary]


@dataclass(frozen=True, slots=True)
class About:
    """What a mode is."""

    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Those of one pass, in order; None for what did not come."""

    loop: Literal["closed", "open"]
    load: float
    temperature: float
    long_prompt: int = 0
    delay_ms: float = 0.0
    mode: str
    number: int = field(metadata=named("pass"))
    first_token_ms: Sequence[float | None]
    total_ms: Sequence[float | None]
    num_tokens: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Settings, machine, a summary of each mode under each load, and every answer."""

    benchmark: str = BENCHMARK
    format: int = FORMAT
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    modes: Mapping[str, About]
    results: Sequence[AtLoad]
    answers: Sequence[Answers]

    def kinds(self) -> Iterator[list[AtLoad]]:
        """The loads that are shown together: those of one temperature and one kind of loop."""
        for temperature in dict.fromkeys(at.temperature for at in self.results):
            for loop in ("closed", "open"):
                found = [at for at in self.results if (at.temperature, at.loop) == (temperature, loop)]
                if found:
                    yield found
