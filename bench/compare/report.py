"""From samples to the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.compare.measuring import Condition, Measured
from bench.compare.resampling import compare
from bench.compare.result import OURS, REFERENCE, About, Answered, AtTemperature, Ratio, Result, Roofline, Summary
from bench.compare.sample import Sample
from bench.compare.summary import Times, devices, identity, speculation, times
from bench.records import as_json, from_json, rounded
from bench.rivals.modes import Mode
from bench.simulate import theory
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX

ByPrompt = Mapping[int, Sample]


def report(
    measured: Sequence[Measured],
    modes: Sequence[Mode],
    *,
    coverage: Mapping[float, Sequence[float]],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> Result:
    """The whole result. `coverage` is what `coverage.py` found at each temperature."""
    conditions = dict.fromkeys(each.condition for each in measured)
    results = [_at(condition, measured, modes, coverage[condition.temperature]) for condition in conditions]
    return Result(
        machine=machine,
        settings=settings,
        modes={mode.name: About(mode.about, mode.family, mode.version or None) for mode in modes},
        results=[from_json(AtTemperature, rounded(as_json(each))) for each in results],
        answers=[from_json(Answered, rounded(as_json(_answer(each)))) for each in measured],
    )


def _at(
    condition: Condition, measured: Sequence[Measured], modes: Sequence[Mode], coverage: Sequence[float]
) -> AtTemperature:
    samples: dict[str, dict[int, Sample]] = {}
    for each in measured:
        if each.condition == condition:
            samples.setdefault(each.mode, {})[each.prompt] = each.sample
    asked = [mode for mode in modes if mode.name in samples]
    timed = {name: times(list(by_prompt.values())) for name, by_prompt in samples.items()}
    return AtTemperature(
        temperature=condition.temperature,
        coverage=coverage,
        best=_best_of_families(timed, asked),
        modes={mode.name: _summary(mode, condition.temperature, samples, timed, coverage) for mode in asked},
        delay_ms=condition.delay_ms or None,
    )


def _summary(
    mode: Mode,
    temperature: float,
    samples: Mapping[str, ByPrompt],
    timed: Mapping[str, Times],
    coverage: Sequence[float],
) -> Summary:
    own, reference = samples[mode.name], samples[REFERENCE]
    use = devices(list(own.values()))
    draft_ms = use.draft_step_ms if use is not None else None
    return Summary(
        **timed[mode.name]._asdict(),
        speculation=speculation(list(own.values())),
        devices=use,
        identity=identity(own, reference) if temperature == 0.0 or not mode.external else None,
        speed_up=_ratio(reference, own),
        decode_speed_up=_ratio(reference, own, decode=True),
        advantage_of_ours=_ratio(own, samples[OURS]) if OURS in samples and mode.name != OURS else None,
        roofline=_roofline(timed[mode.name], timed[REFERENCE], draft_ms, coverage, in_chain=mode.in_chain),
    )


def _best_of_families(timed: Mapping[str, Times], modes: Sequence[Mode]) -> dict[str, str]:
    """The fastest mode of each family, by time per token."""
    families: dict[str, list[str]] = {}
    for mode in modes:
        if mode.family:
            families.setdefault(mode.family, []).append(mode.name)
    return {family: min(names, key=lambda name: timed[name].ms_per_token) for family, names in families.items()}


def _ratio(slow: ByPrompt, fast: ByPrompt, *, decode: bool = False) -> Ratio | None:
    """None where an answer has no time to compare, which came in a single round."""

    def times_of(samples: ByPrompt) -> list[float]:
        return [
            samples[prompt].decode_ms_per_token if decode else samples[prompt].ms_per_token for prompt in sorted(slow)
        ]

    slow_times, fast_times = times_of(slow), times_of(fast)
    if not all(fast_times) or not all(slow_times):
        return None
    sums, medians = compare(slow_times, fast_times)
    return Ratio(sums.value, (sums.low, sums.high), medians.value, (medians.low, medians.high))


def _roofline(
    own: Times, target: Times, draft_ms: float | None, coverage: Sequence[float], *, in_chain: bool
) -> Roofline | None:
    """A target step is what the target alone takes per token in the same run; a tree is as wide as the drafter makes it
    by itself."""
    step_ms, measured_ms = target.decode_ms_per_token, own.decode_ms_per_token
    if draft_ms is None or not step_ms or not measured_ms:
        return None
    alpha = coverage[0 if in_chain else AUTOMATIC_WIDTH_MAX - 1]
    bound = theory.chain_bound(alpha, draft_ms / step_ms) if in_chain else theory.tree_bound(alpha)
    return Roofline(
        alpha=alpha,
        draft_step=draft_ms / step_ms,
        ideal_ms_per_token=bound * step_ms,
        share_reached=bound * step_ms / measured_ms,
    )


def _answer(each: Measured) -> Answered:
    sample = each.sample
    return Answered(
        mode=each.mode,
        temperature=each.condition.temperature,
        prompt=each.prompt,
        first_token_ms=sample.first_token_ms,
        total_ms=sample.total_ms,
        num_tokens=sample.num_tokens,
        accepted_by_round=[one.num_accepted for one in sample.rounds],
        devices=sample.devices,
        delay_ms=each.condition.delay_ms or None,
    )
