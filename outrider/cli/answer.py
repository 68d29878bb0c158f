"""One generation gathered from its events, and the JSON object that stands for it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from outrider.client import Event, Finished, Started, TokenLogprobs, Tokens

_MS_DIGITS = 3
"""Decimals of a duration in JSON: microseconds."""

_RATE_DIGITS = 6
"""Decimals of rates and log-probabilities in JSON; they come as single precision, which holds no more."""


class Answer:
    """Grows by one event at a time; complete once `finished` is set."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        """One for each token if they were asked for, else empty."""
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def add(self, event: Event) -> None:
        """Takes the next event."""
        match event:
            case Started():
                self.started = event
            case Tokens():
                self._texts.append(event.text)
                self.token_ids.extend(token.token_id for token in event.tokens)
                self.logprobs.extend(token.logprobs for token in event.tokens if token.logprobs is not None)
            case Finished():
                self._texts.append(event.text)
                self.finished = event

    def as_json(self, *, with_logprobs: bool) -> dict[str, Any]:
        """The object that `outrider generate --json` prints. Only of a complete answer."""
        started, finished = self.started, self.finished
        assert started is not None
        assert finished is not None
        speculation = asdict(finished.speculation)
        speculation["acceptance_length"] = round(finished.speculation.acceptance_length, _RATE_DIGITS)
        speculation["acceptance_rate"] = round(finished.speculation.acceptance_rate, _RATE_DIGITS)
        answer = {
            "text": self.text,
            "token_ids": self.token_ids,
            "prompt_token_ids": started.prompt_token_ids,
            "finish_reason": finished.reason.name.lower(),
            "mode": finished.mode.name.lower(),
            "reason": finished.mode_reason,
            "seed": started.seed,
            "usage": asdict(finished.usage),
            "speculation": speculation,
            "timings": {name: round(value, _MS_DIGITS) for name, value in asdict(finished.timings).items()},
        }
        if with_logprobs:
            answer["logprobs"] = [_logprobs_as_json(logprobs) for logprobs in self.logprobs]
        return answer


def _logprobs_as_json(logprobs: TokenLogprobs) -> dict[str, Any]:
    return {
        "logprob": _finite(logprobs.logprob),
        "top_token_ids": logprobs.top_token_ids,
        "top_logprobs": [_finite(value) for value in logprobs.top_logprobs],
    }


def _finite(log_prob: float) -> float | None:
    """JSON has no infinity: an impossible token's log-probability is null."""
    return round(log_prob, _RATE_DIGITS) if math.isfinite(log_prob) else None
