"""What a span says about a request: the core's values under their names. Neither prompt nor text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.util.types import AttributeValue

from outrider.core.coordinate.statistics import COUNTERS, SpeculationStatistics
from outrider.core.protocol.sampling import SamplingParams
from outrider.telemetry import names

_INTEGER_MAX: Final = 2**63 - 1
"""Largest integer that OTLP carries; one beyond it would make the exporter drop the whole batch."""


def request_attributes(
    model: str, sampling: SamplingParams, max_tokens: int, stop: Sequence[str], num_completions: int
) -> dict[str, AttributeValue]:
    """What was asked of `model`."""
    attributes: dict[str, AttributeValue] = {
        names.GEN_AI_OPERATION_NAME: names.OPERATION_TEXT_COMPLETION,
        names.GEN_AI_PROVIDER_NAME: names.PROVIDER_OUTRIDER,
        names.GEN_AI_REQUEST_MODEL: model,
        names.GEN_AI_REQUEST_MAX_TOKENS: max_tokens,
        names.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
        names.GEN_AI_REQUEST_TOP_P: sampling.top_p,
        names.GEN_AI_REQUEST_TOP_K: sampling.top_k,
        names.GEN_AI_REQUEST_PRESENCE_PENALTY: sampling.presence_penalty,
        names.GEN_AI_REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty,
        names.SEED: str(sampling.seed),
    }
    if sampling.seed <= _INTEGER_MAX:
        attributes[names.GEN_AI_REQUEST_SEED] = sampling.seed
    if num_completions != 1:
        attributes[names.GEN_AI_REQUEST_CHOICE_COUNT] = num_completions
    if stop:
        attributes[names.GEN_AI_REQUEST_STOP_SEQUENCES] = tuple(stop)
    return attributes


def speculation_attributes(statistics: SpeculationStatistics) -> dict[str, AttributeValue]:
    """What speculation did for a request, with one number per round in place of one span per round."""
    return {
        **{counter.attribute: getattr(statistics, counter.field) for counter in COUNTERS if counter.attribute},
        names.ROUNDS_NUM_DRAFT_TOKENS: tuple(statistics.drafted_by_round),
        names.ROUNDS_NUM_ACCEPTED: tuple(statistics.accepted_by_round),
    }
