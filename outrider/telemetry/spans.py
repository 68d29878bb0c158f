"""Every span that the services make, and what it says: a test holds real runs against it, and a page is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from outrider.core.coordinate.statistics import COUNTERS
from outrider.telemetry import names

ALWAYS: Final = ""
"""When an attribute is there, if it is there always."""

_ENDED = "a completion ended by its own rules"
_FAILED = "it ended by an error"


class SpanKind(NamedTuple):
    """Spans of one name."""

    name: str
    """Of the span; more may follow after a space."""
    service: str
    attributes: Mapping[str, str]
    """By its name when each attribute is there."""
    events: Mapping[str, Sequence[str]] = {}
    """By its name what attributes each event has."""


_ROUND: Final[Mapping[str, str]] = dict.fromkeys(
    (names.ROUND_POSITION, names.ROUND_NUM_DRAFT_TOKENS, names.ROUND_NUM_ACCEPTED), ALWAYS
)

SPANS: Final[Sequence[SpanKind]] = (
    SpanKind(
        names.OPERATION_TEXT_COMPLETION,
        "coordinator",
        {
            **dict.fromkeys(
                (
                    names.GEN_AI_OPERATION_NAME,
                    names.GEN_AI_PROVIDER_NAME,
                    names.GEN_AI_REQUEST_MODEL,
                    names.GEN_AI_REQUEST_MAX_TOKENS,
                    names.GEN_AI_REQUEST_TEMPERATURE,
                    names.GEN_AI_REQUEST_TOP_P,
                    names.GEN_AI_REQUEST_TOP_K,
                    names.GEN_AI_REQUEST_PRESENCE_PENALTY,
                    names.GEN_AI_REQUEST_FREQUENCY_PENALTY,
                    names.GEN_AI_RESPONSE_ID,
                    names.SEED,
                    names.BATCH_INVARIANT,
                ),
                ALWAYS,
            ),
            names.GEN_AI_REQUEST_SEED: "the seed is below 2^63",
            names.GEN_AI_REQUEST_CHOICE_COUNT: "it is not 1",
            names.GEN_AI_REQUEST_STOP_SEQUENCES: "there are some",
            names.TOKEN_NAME: "the coordinator has tokens",
            **dict.fromkeys(
                (
                    *(counter.attribute for counter in COUNTERS if counter.attribute),
                    names.ROUNDS_NUM_DRAFT_TOKENS,
                    names.ROUNDS_NUM_ACCEPTED,
                    names.ROUNDS_MS,
                    names.MODE,
                    names.MODE_REASON,
                    names.DRAFT_MODEL,
                    names.GEN_AI_RESPONSE_MODEL,
                    names.GEN_AI_RESPONSE_FINISH_REASONS,
                    names.GEN_AI_USAGE_INPUT_TOKENS,
                    names.GEN_AI_USAGE_OUTPUT_TOKENS,
                    names.NUM_CACHED_PROMPT_TOKENS,
                    names.COMPLETIONS_MODES,
                    names.COMPLETIONS_NUM_OUTPUT_TOKENS,
                    names.COMPLETIONS_NUM_ROUNDS,
                ),
                _ENDED,
            ),
            names.ERROR_TYPE: _FAILED,
        },
        {names.EVENT_PLACED: (names.REPLICA_SERVICE, names.REPLICA_ADDRESS, names.REPLICA_INSTEAD_OF)},
    ),
    SpanKind(
        names.SPAN_ROUND,
        "coordinator",
        {names.ROUND_COMPLETION: ALWAYS, names.ROUND_INDEX: ALWAYS, **_ROUND, names.ROUND_ROLLED_BACK: ALWAYS},
    ),
    SpanKind(
        names.SPAN_VERIFY_SESSION,
        "verify service",
        {
            **dict.fromkeys(
                (
                    names.SESSION_ID,
                    names.SESSION_NUM_ROUNDS,
                    names.SESSION_NUM_TOKENS,
                    names.SESSION_NUM_DRAFT_TOKENS,
                    names.SESSION_NUM_ACCEPTED,
                    names.SESSION_STEP_MS,
                    names.SESSION_WAIT_MS,
                    names.STEPS_START_MS,
                    names.STEPS_DURATION_MS,
                    names.STEPS_NUM_DRAFT_TOKENS,
                    names.STEPS_NUM_ACCEPTED,
                ),
                ALWAYS,
            ),
            names.SESSION_QUEUE_MS: "it had a slot",
            names.ERROR_TYPE: _FAILED,
        },
    ),
    SpanKind(names.SPAN_VERIFY_STEP, "verify service", _ROUND),
    SpanKind(
        names.SPAN_DRAFT_SESSION,
        "draft service",
        {
            **dict.fromkeys(
                (
                    names.SESSION_ID,
                    names.SESSION_NUM_ROUNDS,
                    names.SESSION_NUM_TOKENS,
                    names.SESSION_NUM_ROLLBACKS,
                    names.SESSION_NUM_NODES,
                    names.SESSION_STEP_MS,
                    names.STEPS_START_MS,
                    names.STEPS_DURATION_MS,
                    names.STEPS_NUM_NODES,
                ),
                ALWAYS,
            ),
            names.SESSION_QUEUE_MS: "it had a slot",
            names.ERROR_TYPE: _FAILED,
        },
    ),
    SpanKind(names.SPAN_DRAFT_STEP, "draft service", {names.STEP_NUM_NODES: ALWAYS}),
)
"""Rounds and steps have spans with OUTRIDER_TRACE_DETAIL=round alone."""
