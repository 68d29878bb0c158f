"""What a span says about a request: the core's values under their names. Neither prompt nor text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.util.types import AttributeValue

from outrider.core.coordinate.statistics import SpeculationStatistics
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
        names.NUM_ROUNDS: statistics.num_rounds,
        names.NUM_DRAFT_TOKENS: statistics.num_draft_tokens,
        names.NUM_ACCEPTED_TOKENS: statistics.num_accepted_tokens,
        names.NUM_ROLLBACKS: statistics.num_rollbacks,
        names.NUM_REJECTIONS: statistics.num_rejections,
        names.NUM_RECOVERED_TOKEN_HITS: statistics.num_recovered_token_hits,
        names.NUM_BONUSES: statistics.num_bonuses,
        names.NUM_BONUS_HITS: statistics.num_bonus_hits,
        names.NUM_STALE_NODES: statistics.num_stale_nodes,
        names.NUM_PROMPT_LOOKUP_TOKENS: statistics.num_prompt_lookup_tokens,
        names.NUM_ACCEPTED_PROMPT_LOOKUP_TOKENS: statistics.num_accepted_prompt_lookup_tokens,
        names.ROUNDS_NUM_DRAFT_TOKENS: tuple(statistics.drafted_by_round),
        names.ROUNDS_NUM_ACCEPTED: tuple(statistics.accepted_by_round),
    }
