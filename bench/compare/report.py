"""From samples to the result that is shown, kept and quoted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.compare.measuring import Measured
from bench.compare.resampling import Comparison, compare
from bench.compare.sample import Sample
from bench.compare.summary import devices_as_json, identity, summarize
from bench.rivals.modes import Mode
from bench.simulate import theory
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX

BENCHMARK = "outrider bench"
FORMAT = 1
"""Version of the result's layout."""

REFERENCE = "target"
OURS = "outrider"

DIGITS = 4
"""Significant digits of figures in a result; no machine repeats itself to a fifth."""


def report(
    measured: Sequence[Measured],
    modes: Sequence[Mode],
    *,
    coverage: Mapping[float, Sequence[float]],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole result as what JSON can hold: settings, machine, a summary for each temperature, and every answer.

    `coverage` is what `coverage.py` found at each temperature.
    """
    temperatures = list(dict.fromkeys(each.temperature for each in measured))
    return {
        "benchmark": BENCHMARK,
        "format": FORMAT,
        "machine": dict(machine),
        "settings": dict(settings),
        "modes": {mode.name: {"about": mode.about, "family": mode.family} for mode in modes},
        "results": [
            rounded(
                _at_temperature(
                    [each for each in measured if each.temperature == temperature],
                    temperature,
                    modes,
                    coverage[temperature],
                )
            )
            for temperature in temperatures
        ],
        "answers": [rounded(_answer(each)) for each in measured],
    }


def _at_temperature(
    measured: Sequence[Measured], temperature: float, modes: Sequence[Mode], coverage: Sequence[float]
) -> dict[str, Any]:
    samples: dict[str, dict[int, Sample]] = {}
    for each in measured:
        samples.setdefault(each.mode, {})[each.prompt] = each.sample
    summaries = {name: summarize(list(by_prompt.values())) for name, by_prompt in samples.items()}
    best = _best_of_families(summaries, modes)
    target = summaries[REFERENCE]
    for mode in modes:
        summary, by_prompt = summaries[mode.name], samples[mode.name]
        comparable = temperature == 0.0 or not mode.external
        summary["identity"] = identity(by_prompt, samples[REFERENCE]) if comparable else None
        summary["speed_up"] = _comparison(samples[REFERENCE], by_prompt)
        summary["decode_speed_up"] = _comparison(samples[REFERENCE], by_prompt, decode=True)
        if OURS in samples and mode.name != OURS:
            summary["advantage_of_ours"] = _comparison(by_prompt, samples[OURS])
        summary["roofline"] = _roofline(summary, target, coverage, in_chain=mode.in_chain)
    return {"temperature": temperature, "coverage": list(coverage), "best": best, "modes": summaries}


def _best_of_families(summaries: Mapping[str, Mapping[str, Any]], modes: Sequence[Mode]) -> dict[str, str]:
    """The fastest mode of each family, by time per token."""
    families: dict[str, list[str]] = {}
    for mode in modes:
        if mode.family:
            families.setdefault(mode.family, []).append(mode.name)
    return {family: min(names, key=lambda name: summaries[name]["ms_per_token"]) for family, names in families.items()}


def _comparison(slow: Mapping[int, Sample], fast: Mapping[int, Sample], *, decode: bool = False) -> dict[str, Any]:
    def times(samples: Mapping[int, Sample]) -> list[float]:
        return [
            samples[prompt].decode_ms_per_token if decode else samples[prompt].ms_per_token for prompt in sorted(slow)
        ]

    slow_times, fast_times = times(slow), times(fast)
    if not all(fast_times) or not all(slow_times):
        return {}
    return _comparison_as_json(compare(slow_times, fast_times))


def _comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "ratio_of_sums": comparison.ratio_of_sums.value,
        "ratio_of_sums_95": [comparison.ratio_of_sums.low, comparison.ratio_of_sums.high],
        "median_of_ratios": comparison.median_of_ratios.value,
        "median_of_ratios_95": [comparison.median_of_ratios.low, comparison.median_of_ratios.high],
    }


def _roofline(
    summary: Mapping[str, Any], target: Mapping[str, Any], coverage: Sequence[float], *, in_chain: bool
) -> dict[str, Any] | None:
    """Ideal time per token while decoding, and the share of it that was reached (design, section 7).

    A target step is what the target alone takes per token in the same run; a tree is as wide as the drafter makes it by
    itself.
    """
    step_ms, measured_ms = target["decode_ms_per_token"], summary["decode_ms_per_token"]
    draft_ms = summary.get("draft_step_ms")
    if draft_ms is None or not step_ms or not measured_ms:
        return None
    alpha = coverage[0 if in_chain else AUTOMATIC_WIDTH_MAX - 1]
    bound = theory.chain_bound(alpha, draft_ms / step_ms) if in_chain else theory.tree_bound(alpha)
    return {
        "alpha": alpha,
        "draft_step": draft_ms / step_ms,
        "ideal_ms_per_token": bound * step_ms,
        "share_reached": bound * step_ms / measured_ms,
    }


def _answer(each: Measured) -> dict[str, Any]:
    sample = each.sample
    return {
        "mode": each.mode,
        "temperature": each.temperature,
        "prompt": each.prompt,
        "first_token_ms": sample.first_token_ms,
        "total_ms": sample.total_ms,
        "num_tokens": sample.num_tokens,
        "accepted_by_round": [one.num_accepted for one in sample.rounds],
        "devices": devices_as_json(sample.devices),
    }


def best_modes(result: Mapping[str, Any], at: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The modes to show for one temperature of a result, with what to call each: of a family only the best."""
    families = {name: about["family"] for name, about in result["modes"].items()}
    for name in at["modes"]:
        family = families[name]
        if not family:
            yield name, name
        elif at["best"][family] == name:
            yield name, f"{name} (best of {sum(each == family for each in families.values())})"


def rounded(value: Any) -> Any:
    """The value with `DIGITS` significant digits in every number within it."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value
