"""What the samples of one mode at one temperature come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from bench.compare.sample import Devices, Sample

DEPTHS_MAX = 16
"""Depths at which acceptance is told."""


def summarize(samples: Sequence[Sample]) -> dict[str, Any]:
    """Times, what speculation did, and where the time of a round went. Counts are sums over all answers."""
    num_tokens = sum(sample.num_tokens for sample in samples)
    later = [sample for sample in samples if len(sample.rounds) > 1]
    num_later = sum(sample.num_tokens - sample.rounds[0].num_tokens for sample in later)
    summary: dict[str, Any] = {
        "num_answers": len(samples),
        "num_tokens": num_tokens,
        "ms_per_token": sum(sample.total_ms for sample in samples) / num_tokens,
        "decode_ms_per_token": (
            sum(sample.total_ms - sample.first_token_ms for sample in later) / num_later if num_later else None
        ),
        "first_token_ms": median(sample.first_token_ms for sample in samples),
    }
    rounds = [each for sample in samples for each in sample.rounds]
    summary["num_rounds"] = len(rounds)
    summary["acceptance_length"] = num_tokens / len(rounds)
    if any(sample.statistics for sample in samples):
        summary |= _speculation(samples)
    logged = [sample for sample in samples if sample.devices is not None]
    if logged:
        summary |= _devices(logged)
    return summary


def _speculation(samples: Sequence[Sample]) -> dict[str, Any]:
    counts = {name: _sum(samples, name) for name in _COUNTS}
    rounds = [each for sample in samples for each in sample.rounds]
    num_tests = counts["num_accepted_tokens"] + counts["num_rejections"]
    tested = [each for each in rounds if each.num_draft_tokens]
    return {
        **counts,
        "num_wasted_nodes": counts["num_drafted_nodes"]
        - counts["num_accepted_tokens"]
        + counts["num_accepted_prompt_lookup_tokens"],
        "acceptance": counts["num_accepted_tokens"] / num_tests if num_tests else None,
        "accepted_at_depth": [
            sum(each.num_accepted >= depth for each in tested) / len(tested)
            for depth in range(1, min(DEPTHS_MAX, max((each.num_accepted for each in tested), default=0)) + 1)
        ],
        "num_degraded": sum(sample.statistics.get("mode") == "degraded" for sample in samples),
    }


_COUNTS = (
    "num_draft_tokens",
    "num_accepted_tokens",
    "num_rollbacks",
    "num_drafted_nodes",
    "num_stale_nodes",
    "num_rejections",
    "num_recovered_token_hits",
    "num_bonuses",
    "num_bonus_hits",
    "num_prompt_lookup_tokens",
    "num_accepted_prompt_lookup_tokens",
)


def _sum(samples: Sequence[Sample], name: str) -> int:
    return sum(sample.statistics.get(name, 0) for sample in samples)


def _devices(samples: Sequence[Sample]) -> dict[str, Any]:
    logs = [sample.devices for sample in samples if sample.devices is not None]
    total_ms = sum(sample.total_ms for sample in samples)
    num_rounds = sum(len(sample.rounds) for sample in samples)
    num_draft_steps = sum(log.num_draft_steps for log in logs)

    def summed(name: str) -> float:
        return sum(getattr(log, name) for log in logs)

    return {
        "overlap": summed("both_ms") / total_ms,
        "verify_busy": summed("verify_ms") / total_ms,
        "draft_busy": summed("draft_ms") / total_ms,
        "verify_step_ms": median(log.verify_step_ms for log in logs),
        "draft_step_ms": _median_of_positive([log.draft_step_ms for log in logs]),
        "draft_outside_ms_per_step": summed("draft_outside_ms") / num_draft_steps if num_draft_steps else None,
        "round_ms": {
            "verify": summed("verify_ms") / num_rounds,
            "verifier_outside": summed("verify_outside_ms") / num_rounds,
            "verifier_idle": summed("verify_idle_ms") / num_rounds,
            "edges": summed("edges_ms") / num_rounds,
            "drafting": summed("draft_ms") / num_rounds,
            "drafter_outside": summed("draft_outside_ms") / num_rounds,
        },
    }


def _median_of_positive(values: Sequence[float]) -> float | None:
    positive = [value for value in values if value > 0.0]
    return median(positive) if positive else None


def identity(samples: Mapping[int, Sample], reference: Mapping[int, Sample]) -> dict[str, Any] | None:
    """How many answers are token for token those of `reference`, by prompt; None if the tokens are not known."""
    num_identical = 0
    differences: list[int] = []
    for prompt, sample in samples.items():
        mine, theirs = sample.token_ids, reference[prompt].token_ids
        if mine is None or theirs is None:
            return None
        if list(mine) == list(theirs):
            num_identical += 1
        else:
            pairs = zip(mine, theirs, strict=False)
            differences.append(next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs))))
    return {
        "num_identical": num_identical,
        "first_difference": min(differences, default=None),
        "mean_first_difference": fmean(differences) if differences else None,
    }


def devices_as_json(devices: Devices | None) -> dict[str, Any] | None:
    """The log's figures by name."""
    return None if devices is None else {name: getattr(devices, name) for name in Devices.__dataclass_fields__}
