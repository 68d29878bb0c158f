"""Every bound, from both sides, and all complaints at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, ProtocolViolationError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.messages import DraftOpen, ModelInfo, VerifyOpen, WorkerLoad
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import (
    BEGINS_AFTER_CHARACTERS_MAX,
    DRAFT_TOKENS_MAX,
    GRAMMAR_BYTES_MAX,
    LOGIT_BIAS_ENTRIES_MAX,
    LOGIT_BIAS_MAX,
    LOGPROBS_MAX,
    PENALTY_MAX,
    RUN_AHEAD_MAX,
    SEED_MAX,
    SESSION_ID_CHARACTERS_MAX,
    STOP_TOKEN_IDS_MAX,
    TEMPERATURE_MAX,
    TREE_WIDTH_MAX,
    Violations,
    check_draft_open,
    check_load,
    check_model_info,
    check_verify_open,
)

VOCAB_SIZE = 100
MAX_CONTEXT = 10

DRAFT_OPEN = DraftOpen(
    session_id="s",
    token_ids=[1, 2, 3],
    num_prompt_tokens=2,
    sampling=SamplingParams(),
    max_run_ahead=8,
    tree_width=2,
    max_length=MAX_CONTEXT,
    vocab_size=VOCAB_SIZE,
)
VERIFY_OPEN = VerifyOpen(
    session_id="s", token_ids=[1, 2, 3], num_prompt_tokens=2, sampling=SamplingParams(), max_length=MAX_CONTEXT
)

BOTH: list[tuple[str, Any, bool]] = [
    ("token_ids", [0], True),
    ("token_ids", [], False),
    ("token_ids", [VOCAB_SIZE - 1] * 2, True),
    ("token_ids", [1, VOCAB_SIZE], False),
    ("token_ids", [1, -1], False),
    ("token_ids", [1] * (MAX_CONTEXT - 1), True),
    ("token_ids", [1] * MAX_CONTEXT, False),
    ("num_prompt_tokens", 1, True),
    ("num_prompt_tokens", 3, True),
    ("num_prompt_tokens", 0, False),
    ("num_prompt_tokens", 4, False),
    ("max_length", 4, True),
    ("max_length", 3, False),
    ("max_length", MAX_CONTEXT + 1, False),
    ("session_id", "x" * SESSION_ID_CHARACTERS_MAX, True),
    ("session_id", "x" * (SESSION_ID_CHARACTERS_MAX + 1), False),
]

DRAFT_ONLY: list[tuple[str, Any, bool]] = [
    ("tree_width", 1, True),
    ("tree_width", TREE_WIDTH_MAX, True),
    ("tree_width", 0, True),
    ("tree_width", -1, False),
    ("tree_width", TREE_WIDTH_MAX + 1, False),
    ("max_run_ahead", 2, True),
    ("max_run_ahead", 1, False),
    ("max_run_ahead", RUN_AHEAD_MAX, True),
    ("max_run_ahead", RUN_AHEAD_MAX + 1, False),
    ("vocab_size", 1, True),
    ("vocab_size", 0, False),
]

VERIFY_ONLY: list[tuple[str, Any, bool]] = [
    ("stop_token_ids", frozenset(range(STOP_TOKEN_IDS_MAX)), True),
    ("stop_token_ids", frozenset(range(STOP_TOKEN_IDS_MAX + 1)), False),
    ("stop_token_ids", frozenset({VOCAB_SIZE}), False),
    ("num_logprobs", None, True),
    ("num_logprobs", 0, True),
    ("num_logprobs", LOGPROBS_MAX, True),
    ("num_logprobs", LOGPROBS_MAX + 1, False),
    ("num_logprobs", -1, False),
    ("max_draft_tokens", DRAFT_TOKENS_MAX, True),
    ("max_draft_tokens", DRAFT_TOKENS_MAX + 1, False),
    ("max_draft_tokens", -1, False),
]

SAMPLING: list[tuple[str, Any, bool]] = [
    ("temperature", 0.0, True),
    ("temperature", TEMPERATURE_MAX, True),
    ("temperature", TEMPERATURE_MAX + 1, False),
    ("temperature", -0.1, False),
    ("top_p", 1e-6, True),
    ("top_p", 1.0, True),
    ("top_p", 0.0, False),
    ("top_p", 1.1, False),
    ("top_k", 0, True),
    ("top_k", -1, False),
    ("top_k", 2**31 - 1, True),
    ("top_k", 2**31, False),
    ("min_p", 0.0, True),
    ("min_p", 1.0, True),
    ("min_p", -0.1, False),
    ("min_p", 1.1, False),
    ("repetition_penalty", PENALTY_MAX, True),
    ("repetition_penalty", 0.0, False),
    ("repetition_penalty", PENALTY_MAX + 1, False),
    ("presence_penalty", -PENALTY_MAX, True),
    ("presence_penalty", -PENALTY_MAX - 1, False),
    ("presence_penalty", PENALTY_MAX + 1, False),
    ("frequency_penalty", PENALTY_MAX, True),
    ("frequency_penalty", -PENALTY_MAX - 1, False),
    ("frequency_penalty", PENALTY_MAX + 1, False),
    ("seed", SEED_MAX, True),
    ("seed", SEED_MAX + 1, False),
    ("seed", -1, False),
    ("logit_bias", ((0, LOGIT_BIAS_MAX), (VOCAB_SIZE - 1, -LOGIT_BIAS_MAX)), True),
    ("logit_bias", ((0, LOGIT_BIAS_MAX + 1),), False),
    ("logit_bias", ((0, math.nan),), False),
    ("logit_bias", ((0, -math.inf),), False),
    ("logit_bias", ((VOCAB_SIZE, 1.0),), False),
    ("logit_bias", ((-1, 1.0),), False),
    ("logit_bias", ((1, 1.0),) * LOGIT_BIAS_ENTRIES_MAX, True),
    ("logit_bias", ((1, 1.0),) * (LOGIT_BIAS_ENTRIES_MAX + 1), False),
    ("grammar", Grammar(GrammarKind.REGEX, "a"), True),
    (
        "grammar",
        Grammar(GrammarKind.JSON_SCHEMA, "é" * (GRAMMAR_BYTES_MAX // 2), "é" * BEGINS_AFTER_CHARACTERS_MAX),
        True,
    ),
    ("grammar.regex", Grammar(GrammarKind.REGEX, ""), False),
    ("grammar.json_schema", Grammar(GrammarKind.JSON_SCHEMA, "é" * (GRAMMAR_BYTES_MAX // 2) + "x"), False),
    ("grammar.lark", Grammar(GrammarKind.LARK, "\ud800" * GRAMMAR_BYTES_MAX), False),
    ("grammar.begins_after", Grammar(GrammarKind.LARK, "x", "é" * (BEGINS_AFTER_CHARACTERS_MAX + 1)), False),
]

FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def violated_by_draft(opening: DraftOpen) -> list[str]:
    """The fields that a drafter complains about."""
    try:
        check_draft_open(opening, VOCAB_SIZE, MAX_CONTEXT)
    except InvalidRequestError as error:
        return [violation.field for violation in error.violations]
    return []


def violated_by_verify(opening: VerifyOpen) -> list[str]:
    """The fields that a verifier complains about."""
    try:
        check_verify_open(opening, VOCAB_SIZE, MAX_CONTEXT)
    except InvalidRequestError as error:
        return [violation.field for violation in error.violations]
    return []


@pytest.mark.parametrize(("field", "value", "allowed"), BOTH + DRAFT_ONLY)
def test_what_a_drafter_may_be_asked(field: str, value: Any, allowed: bool) -> None:
    found = violated_by_draft(_with_fitting_prompt(DRAFT_OPEN, field, value))
    assert (f"open.{field}" in found) is not allowed


@pytest.mark.parametrize(("field", "value", "allowed"), BOTH + VERIFY_ONLY)
def test_what_a_verifier_may_be_asked(field: str, value: Any, allowed: bool) -> None:
    found = violated_by_verify(_with_fitting_prompt(VERIFY_OPEN, field, value))
    assert (f"open.{field}" in found) is not allowed


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    SAMPLING + [(field, value, False) for field in FLOATS for value in (math.nan, math.inf, -math.inf)],
)
def test_how_tokens_may_be_chosen(field: str, value: Any, allowed: bool) -> None:
    sampling = replace(SamplingParams(), **{field.partition(".")[0]: value})
    expected = [] if allowed else [f"open.sampling.{field}"]
    assert violated_by_draft(replace(DRAFT_OPEN, sampling=sampling)) == expected
    assert violated_by_verify(replace(VERIFY_OPEN, sampling=sampling)) == expected


def test_the_caller_hears_everything_at_once_and_in_words() -> None:
    bad = replace(VERIFY_OPEN, token_ids=[1, 200], max_length=99, sampling=SamplingParams(temperature=-1.0, top_p=0.0))
    with pytest.raises(InvalidRequestError) as caught:
        check_verify_open(bad, VOCAB_SIZE, MAX_CONTEXT)
    assert caught.value.violations == (
        FieldViolation("open.token_ids", "token id 200 is out of range: the vocabulary has 100 tokens"),
        FieldViolation("open.max_length", "must exceed the number of token_ids and be at most the context of 10"),
        FieldViolation("open.sampling.temperature", "must be between 0 and 100, not -1.0"),
        FieldViolation("open.sampling.top_p", "must be above 0 and at most 1, not 0.0"),
    )
    assert str(caught.value).startswith("open.token_ids: token id 200 is out of range")


def test_nothing_found_raises_nothing() -> None:
    found = Violations()
    found.check(True, "field", "never said")
    found.raise_if_any()


def _with_fitting_prompt(opening: Any, field: str, value: Any) -> Any:
    """The opening with one field changed; a short line has a short prompt."""
    changed = replace(opening, **{field: value})
    return replace(changed, num_prompt_tokens=1) if field == "token_ids" else changed


MODEL = ModelInfo("target", "llama", 100, "a" * 64, (2,), 512, 4, 1000, "float32", "cpu", 2, "first")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "x" * 257},
        {"name": "red \x1b[31m"},
        {"instance_id": "x" * 257},
        {"vocab_size": 0},
        {"eos_token_ids": (100,)},
        {"eos_token_ids": (1,) * 1025},
        {"max_context": 1},
        {"max_sessions": 0},
        {"max_sessions": 1025},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_what_a_worker_cannot_serve(changes: dict[str, Any]) -> None:
    check_model_info(MODEL)
    with pytest.raises(ProtocolViolationError):
        check_model_info(MODEL._replace(**changes))


@pytest.mark.parametrize("changes", [{"step_ms": math.nan}, {"step_ms": -1.0}, {"instance_id": "x" * 257}])
def test_how_busy_a_worker_cannot_be(changes: dict[str, Any]) -> None:
    load = WorkerLoad("first", 1, 2, 3, 4, 5, 6.0)
    check_load(load)
    with pytest.raises(ProtocolViolationError):
        check_load(load._replace(**changes))
