"""The result of a comparison of modes, as it is shown, kept and quoted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.compare.sample import Devices
from bench.records import FLAT

BENCHMARK = "outrider bench"
FORMAT = 1
"""Version of the result's layout."""

REFERENCE = "target"
OURS = "outrider"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one mode took as another, over the same prompts, with 95 % bootstrap intervals."""

    ratio_of_sums: float
    """All time of the one by all time of the other."""
    ratio_of_sums_95: Sequence[float]
    median_of_ratios: float
    """The middle one of the prompts' own ratios."""
    median_of_ratios_95: Sequence[float]


@dataclass(frozen=True, slots=True)
class Identity:
    """How many answers are token for token those of the target alone."""

    num_identical: int
    first_difference: int | None
    """The earliest place at which an answer differs; None: nowhere."""
    mean_first_difference: float | None


@dataclass(frozen=True, slots=True)
class Roofline:
    """Ideal time per token while decoding, and the share of it that was reached (design, section 7)."""

    alpha: float
    draft_step: float
    """In target steps."""
    ideal_ms_per_token: float
    share_reached: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Sums over all answers, by the servers' own counts."""

    num_draft_tokens: int
    num_accepted_tokens: int
    num_rollbacks: int
    num_drafted_nodes: int
    num_stale_nodes: int
    num_rejections: int
    num_recovered_token_hits: int
    num_bonuses: int
    num_bonus_hits: int
    num_prompt_lookup_tokens: int
    num_accepted_prompt_lookup_tokens: int
    num_wasted_nodes: int
    acceptance: float | None
    """Share of tested drafts that were the target's choice."""
    accepted_at_depth: Sequence[float]
    num_degraded: int
    """Answers whose drafter was lost on the way."""
    undrafted: Mapping[str, int] | None = None
    """Answers that no drafter guessed for though one was wanted, by why; None where nobody counted them."""


@dataclass(frozen=True, slots=True)
class RoundParts:
    """Where the time of a round goes, in milliseconds."""

    verify: float
    verifier_outside: float
    verifier_idle: float
    edges: float
    drafting: float
    drafter_outside: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """What the workers did, by their logs."""

    overlap: float
    """Share of time in which both devices compute."""
    verify_busy: float
    draft_busy: float
    verify_step_ms: float
    draft_step_ms: float | None
    draft_outside_ms_per_step: float | None
    round_ms: RoundParts


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One mode at one temperature."""

    num_answers: int
    num_tokens: int
    ms_per_token: float
    decode_ms_per_token: float | None
    """Of what comes after the first round; None if nothing does."""
    first_token_ms: float
    """Median."""
    num_rounds: int
    acceptance_length: float
    speculation: Speculation | None = field(default=None, metadata=FLAT)
    devices: DeviceUse | None = field(default=None, metadata=FLAT)
    identity: Identity | None
    """None where the tokens are not known, or are drawn with other noise."""
    speed_up: Ratio | None
    """Over the target alone."""
    decode_speed_up: Ratio | None
    advantage_of_ours: Ratio | None = None
    """Over this mode."""
    roofline: Roofline | None


@dataclass(frozen=True, slots=True)
class AtTemperature:
    """All modes at one temperature and one delay."""

    temperature: float
    coverage: Sequence[float]
    """At index w - 1: how often the target's token is among the draft's first w guesses."""
    best: Mapping[str, str]
    """The fastest mode of each family."""
    modes: Mapping[str, Summary]
    delay_ms: float | None = None
    """How much longer messages between a coordinator and its workers take each way; None: not at all."""


@dataclass(frozen=True, slots=True)
class About:
    """What a mode is."""

    about: str
    family: str
    version: str | None = None
    """Of another system: which one this is, and how it was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One answer."""

    mode: str
    temperature: float
    prompt: int
    first_token_ms: float
    total_ms: float
    num_tokens: int
    accepted_by_round: Sequence[int]
    devices: Devices | None
    delay_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Settings, machine, a summary of each mode at each temperature, and every answer."""

    benchmark: str = BENCHMARK
    format: int = FORMAT
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    modes: Mapping[str, About]
    results: Sequence[AtTemperature]
    answers: Sequence[Answered]

    def versions(self) -> Iterator[str]:
        """What the other systems are, and how they were started: a line for each."""
        for name, about in self.modes.items():
            if about.version is not None:
                yield f"{name}: {about.version}"

    def likenesses(self) -> Iterator[str]:
        """How many answers of other systems are the target's own: a line for each condition where that can be."""
        for at in self.results:
            alike = [
                f"{name} {summary.identity.num_identical} of {summary.num_answers}"
                for name, summary in at.modes.items()
                if self.modes[name].version is not None and summary.identity is not None
            ]
            if alike:
                chosen = drawn(at.temperature, at.delay_ms)
                yield f"Answers that are the target's own, token for token, {chosen}: {', '.join(alike)}."

    def without_drafter(self) -> Iterator[str]:
        """Which figures have answers in them that had no drafter, or lost it: a line for each."""
        for at in self.results:
            for name, summary in at.modes.items():
                if (found := summary.speculation) is None:
                    continue
                of = f"of {summary.num_answers} answers of {name}, {drawn(at.temperature, at.delay_ms)}"
                if undrafted := found.undrafted:
                    first, *others = sorted(undrafted, key=undrafted.__getitem__, reverse=True)
                    more = f"; other reasons: {len(others)}" if others else ""
                    yield f"{sum(undrafted.values())} {of}, had no drafter: {first}{more}."
                if found.num_degraded:
                    yield f"{found.num_degraded} {of}, lost their drafter."

    def best_modes(self, at: AtTemperature) -> Iterator[tuple[str, Summary]]:
        """The modes to show for one temperature, with what to call each: of a family only the best."""
        families = [about.family for about in self.modes.values()]
        for name, summary in at.modes.items():
            family = self.modes[name].family
            if not family:
                yield name, summary
            elif at.best[family] == name:
                yield f"{name} (best of {families.count(family)})", summary


def drawn(temperature: float, delay_ms: float | None = None) -> str:
    """How tokens are chosen, and how late messages are if they are, in words."""
    chosen = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    return f"{chosen}, messages {delay_ms:g} ms late" if delay_ms else chosen
