"""What speculation did for a choice, step by step, and how vLLM and llama.cpp tell it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from outrider.core.coordinate.events import Finished, TokenOrigin, Tokens
from outrider.core.coordinate.explanation import explanation

_HEADER_CHARACTERS_MAX: Final = 512
"""Most characters of a reason in a header; the body has all of it."""


class Mode(NamedTuple):
    """How the tokens were produced, why not as asked for, and why speculation paid or did not."""

    name: str
    reason: str
    explanation: Sequence[str]

    @property
    def body(self) -> dict[str, Any]:
        """In a body."""
        return {"mode": self.name, "mode_reason": self.reason, "explanation": self.explanation}

    @property
    def headers(self) -> dict[str, str]:
        """As headers, which hold printable ASCII in one line."""
        reason = " ".join(self.reason.split()).encode("ascii", "replace").decode()[:_HEADER_CHARACTERS_MAX]
        return {"x-outrider-mode": self.name} | ({"x-outrider-mode-reason": reason} if reason else {})


def mode(finished: Sequence[Finished]) -> Mode:
    """That of the first one with a reason, or of the first one."""
    notable = next((each for each in finished if each.mode_reason), finished[0])
    return Mode(notable.mode.name.lower(), notable.mode_reason, explanation(notable).sentences)


class Steps:
    """The rounds of a choice. A step is a round that scored draft tokens."""

    def __init__(self, num_spec_tokens: int, *, detailed: bool) -> None:
        """`num_spec_tokens` is the most draft tokens of a step; 0 if there is no speculation."""
        self._num_spec_tokens = num_spec_tokens
        self.num_received = 0
        """Tokens that the client had from a coordinator before: what is told of times and steps leaves them out."""
        self._detailed = detailed
        self._num_rounds_without = 0
        self._drafted: list[int] = []
        self._accepted: list[int] = []

    def on_round(self, event: Tokens) -> None:
        """Counts a round."""
        if not event.num_draft_tokens:
            self._num_rounds_without += 1
        elif self._detailed:
            self._drafted.append(event.num_draft_tokens)
            self._accepted.append(sum(token.origin is TokenOrigin.ACCEPTED for token in event.tokens))

    def speculative_decoding(self, finished: Finished) -> dict[str, Any] | None:
        """As vLLM tells it: rates with its definitions, and each step's counts where details were asked for."""
        told = finished.speculation
        if not self._num_spec_tokens:
            return None
        num_steps = told.num_rounds - self._num_rounds_without
        histogram = [*told.acceptance_histogram, *[0] * (self._num_spec_tokens + 1 - len(told.acceptance_histogram))]
        histogram[0] -= self._num_rounds_without
        found: dict[str, Any] = {
            "mean_acceptance_length": 1 + told.num_accepted_tokens / num_steps if num_steps else 0.0,
            "draft_acceptance_rate": told.acceptance_rate,
            "acceptance_histogram": histogram,
            "num_spec_steps": num_steps,
            "num_accepted_draft_tokens": told.num_accepted_tokens,
            "num_draft_tokens": told.num_draft_tokens,
            "num_spec_tokens": self._num_spec_tokens,
        }
        if self._detailed:
            found |= {
                "per_step_accepted": self._per_step_accepted(told.num_accepted_tokens),
                "per_step_drafted": self._drafted,
            }
        return found

    def _per_step_accepted(self, num_accepted: int) -> list[int]:
        """A stop string may have ended the text, and what was told, before the last step's last accepted token."""
        before = self._accepted[:-1]
        return [*before, num_accepted - sum(before)] if self._accepted else []


def metrics(finished: Finished, steps: Steps) -> dict[str, Any]:
    """vLLM's object of a request's metrics; times in milliseconds."""
    timings, num_tokens = finished.timings, finished.usage.num_generated_tokens - steps.num_received
    generation_ms = timings.total_ms - timings.first_token_ms
    return {
        "time_to_first_token_ms": timings.first_token_ms,
        "generation_time_ms": generation_ms,
        "mean_itl_ms": generation_ms / (num_tokens - 1) if num_tokens > 1 else None,
        "tokens_per_second": _per_second(num_tokens, timings.total_ms),
        "speculative_decoding": steps.speculative_decoding(finished),
    }


def timings(finished: Finished, steps: Steps) -> dict[str, Any]:
    """llama.cpp's object of a request's times, in milliseconds, and draft tokens."""
    usage, told, spent = finished.usage, finished.speculation, finished.timings
    num_tokens, predicted_ms = usage.num_generated_tokens - steps.num_received, spent.total_ms - spent.first_token_ms
    return {
        "cache_n": usage.num_cached_prompt_tokens,
        "prompt_n": usage.num_prompt_tokens - usage.num_cached_prompt_tokens,
        "prompt_ms": spent.first_token_ms,
        "predicted_n": num_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_second": _per_second(num_tokens, predicted_ms),
        "draft_n": told.num_draft_tokens,
        "draft_n_accepted": told.num_accepted_tokens,
    }


def _per_second(num_tokens: int, milliseconds: float) -> float | None:
    return 1000 * num_tokens / milliseconds if milliseconds > 0 else None
