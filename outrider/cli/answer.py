"""An answer as the JSON object that stands for it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from outrider.client import Answer, Completion, TokenLogprobs
from outrider.core.coordinate.explanation import explanation

_MS_DIGITS = 3
"""Decimals of a duration in JSON: microseconds."""

_RATE_DIGITS = 6
"""Decimals of rates and log-probabilities in JSON; they come as single precision, which holds no more."""


def json_object(answer: Answer, *, as_list: bool, with_logprobs: bool) -> dict[str, Any]:
    """The object that `outrider generate --json` prints.

    It stands for the one completion; with `as_list` it has a list of such objects, however many there are.
    """
    completions = [_completion_object(completion, with_logprobs) for completion in answer.completions]
    started = answer.started
    shared: dict[str, Any] = {
        "prompt_token_ids": started.prompt_token_ids,
        "batch_invariant": started.batch_invariant,
        **({"kv_cache_dtype": started.kv_cache_dtype} if started.kv_cache_dtype not in ("", "auto") else {}),
    }
    if as_list:
        return {**shared, "completions": completions}
    (completion,) = completions
    return {**completion, **shared}


def _completion_object(completion: Completion, with_logprobs: bool) -> dict[str, Any]:
    finished = completion.finished
    speculation = asdict(finished.speculation)
    speculation["acceptance_length"] = round(finished.speculation.acceptance_length, _RATE_DIGITS)
    speculation["acceptance_rate"] = round(finished.speculation.acceptance_rate, _RATE_DIGITS)
    content: dict[str, Any] = {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": finished.reason.name.lower(),
        "mode": finished.mode.name.lower(),
        "reason": finished.mode_reason,
        "explanation": explanation(finished).sentences,
        "seed": completion.seed,
        "usage": asdict(finished.usage),
        "speculation": speculation,
        "timings": {name: round(value, _MS_DIGITS) for name, value in asdict(finished.timings).items()},
    }
    if with_logprobs:
        content["logprobs"] = [_logprobs_object(logprobs) for logprobs in completion.logprobs]
    return content


def _logprobs_object(logprobs: TokenLogprobs) -> dict[str, Any]:
    return {
        "logprob": _finite(logprobs.logprob),
        "top_token_ids": logprobs.top_token_ids,
        "top_logprobs": [_finite(value) for value in logprobs.top_logprobs],
    }


def _finite(log_prob: float) -> float | None:
    """JSON has no infinity: an impossible token's log-probability is null."""
    return round(log_prob, _RATE_DIGITS) if math.isfinite(log_prob) else None
