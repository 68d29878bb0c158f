"""What the samples of one mode at one temperature come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from bench.compare.result import DeviceUse, Identity, RoundParts, Speculation
from bench.compare.sample import Sample

DEPTHS_MAX = 16
"""Depths at which acceptance is told."""


class Times(NamedTuple):
    """Fields of `Summary` by their names."""

    num_answers: int
    num_tokens: int
    ms_per_token: float
    decode_ms_per_token: float | None
    first_token_ms: float
    num_rounds: int
    acceptance_length: float


def times(samples: Sequence[Sample]) -> Times:
    """By the client's clock."""
    num_tokens = sum(sample.num_tokens for sample in samples)
    num_rounds = sum(len(sample.rounds) for sample in samples)
    later = [sample for sample in samples if len(sample.rounds) > 1]
    num_later = sum(sample.num_tokens - sample.rounds[0].num_tokens for sample in later)
    return Times(
        num_answers=len(samples),
        num_tokens=num_tokens,
        ms_per_token=sum(sample.total_ms for sample in samples) / num_tokens,
        decode_ms_per_token=(
            sum(sample.total_ms - sample.first_token_ms for sample in later) / num_later if num_later else None
        ),
        first_token_ms=median(sample.first_token_ms for sample in samples),
        num_rounds=num_rounds,
        acceptance_length=num_tokens / num_rounds,
    )


def speculation(samples: Sequence[Sample]) -> Speculation | None:
    """What speculation did; None for servers that do not say."""
    if not any(sample.statistics for sample in samples):
        return None
    counts = {name: sum(sample.statistics.get(name, 0) for sample in samples) for name in _COUNTS}
    # A coordinator does not hear of drafts that never left the verifier's process, unless they are scored.
    num_scored_drafts = counts["num_draft_tokens"] - counts["num_prompt_lookup_tokens"]
    counts["num_drafted_nodes"] = max(counts["num_drafted_nodes"], num_scored_drafts)
    num_accepted = counts["num_accepted_tokens"]
    num_tests = num_accepted + counts["num_rejections"]
    tested = [each for sample in samples for each in sample.rounds if each.num_draft_tokens]
    depth_max = min(DEPTHS_MAX, max((each.num_accepted for each in tested), default=0))
    return Speculation(
        **counts,
        num_wasted_nodes=counts["num_drafted_nodes"] - num_accepted + counts["num_accepted_prompt_lookup_tokens"],
        acceptance=num_accepted / num_tests if num_tests else None,
        accepted_at_depth=[
            sum(each.num_accepted >= depth for each in tested) / len(tested) for depth in range(1, depth_max + 1)
        ],
        num_degraded=sum(sample.statistics.get("mode") == "degraded" for sample in samples),
        undrafted=dict(Counter(sample.undrafted for sample in samples if sample.undrafted)),
    )


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


def devices(samples: Sequence[Sample]) -> DeviceUse | None:
    """What the workers did; None where they keep no log."""
    logged = [(sample, sample.devices) for sample in samples if sample.devices is not None]
    if not logged:
        return None
    logs = [log for _, log in logged]
    total_ms = sum(sample.total_ms for sample, _ in logged)
    num_rounds = sum(len(sample.rounds) for sample, _ in logged)
    num_draft_steps = sum(log.num_draft_steps for log in logs)

    def summed(name: str) -> float:
        return sum(getattr(log, name) for log in logs)

    return DeviceUse(
        overlap=summed("both_ms") / total_ms,
        verify_busy=summed("verify_ms") / total_ms,
        draft_busy=summed("draft_ms") / total_ms,
        verify_step_ms=median(log.verify_step_ms for log in logs),
        draft_step_ms=_median_of_positive([log.draft_step_ms for log in logs]),
        draft_outside_ms_per_step=summed("draft_outside_ms") / num_draft_steps if num_draft_steps else None,
        round_ms=RoundParts(
            verify=summed("verify_ms") / num_rounds,
            verifier_outside=summed("verify_outside_ms") / num_rounds,
            verifier_idle=summed("verify_idle_ms") / num_rounds,
            edges=summed("edges_ms") / num_rounds,
            drafting=summed("draft_ms") / num_rounds,
            drafter_outside=summed("draft_outside_ms") / num_rounds,
        ),
    )


def _median_of_positive(values: Sequence[float]) -> float | None:
    positive = [value for value in values if value > 0.0]
    return median(positive) if positive else None


def identity(samples: Mapping[int, Sample], reference: Mapping[int, Sample]) -> Identity | None:
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
    return Identity(num_identical, min(differences, default=None), fmean(differences) if differences else None)
