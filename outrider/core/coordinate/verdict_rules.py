"""Verdict rules: what a verifier may say of a session. It chooses the tokens; whatever else it claims is checked."""

from __future__ import annotations

import math
from typing import NamedTuple

from outrider.core.protocol.ending import Ending
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import FinishReason, TokenLogprobs, Verdict


class VerdictRules(NamedTuple):
    """The rules of one session. Each method raises ProtocolViolationError, in words, for what cannot be.

    Lengths are compared before anything of that length is looked at. Gaps, contradictions and the counts of accepted
    tokens are the session's own to check.
    """

    ending: Ending
    vocab_size: int
    max_draft_tokens: int
    """Most draft tokens of a round."""
    num_logprobs: int | None
    """Alternatives beside each token's log-probability; None: no log-probabilities."""

    def check_opened(self, num_line_tokens: int, line: Line) -> None:
        """The verifier says from what length of line it starts."""
        if num_line_tokens != len(line):
            raise ProtocolViolationError(f"it opened a line of {num_line_tokens} tokens, which has {len(line)}")

    def check_verdict(self, verdict: Verdict, line: Line) -> None:
        """A round was decided, by which `line`, as it is before that, may grow."""
        token_ids, position = verdict.token_ids, verdict.position
        if not len(token_ids) - 1 <= verdict.num_draft_tokens <= self.max_draft_tokens:
            raise ProtocolViolationError(
                f"a verdict has {len(token_ids)} tokens for {verdict.num_draft_tokens} draft tokens, of which a round "
                f"has {self.max_draft_tokens} at most"
            )
        if position < line.num_prompt_tokens or position + len(token_ids) > self.ending.max_length:
            raise ProtocolViolationError(
                f"a verdict has {len(token_ids)} tokens at position {position}, where the prompt ends at "
                f"{line.num_prompt_tokens} and the line at {self.ending.max_length}"
            )
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
            raise ProtocolViolationError(f"a token id is out of range: the vocabulary has {self.vocab_size}")
        self._check_end(verdict, line)
        num_logprobs = 0 if self.num_logprobs is None else len(token_ids)
        if len(verdict.logprobs) != num_logprobs:
            raise ProtocolViolationError(
                f"a verdict has log-probabilities of {len(verdict.logprobs)} tokens, and {num_logprobs} are due"
            )
        for logprobs in verdict.logprobs:
            self._check_logprobs(logprobs)
        if not (
            0.0 <= verdict.verify_ms < math.inf
            and 0.0 <= verdict.wait_ms < math.inf
            and 0.0 <= verdict.cutoff_ms < math.inf
            and math.isfinite(verdict.probability_min)
            and verdict.num_cached_tokens <= len(line)
        ):
            raise ProtocolViolationError("a time, a probability or a count of a verdict is out of its range")

    def check_finished(self, reason: FinishReason, line: Line) -> None:
        """The session ended by its own rules, with the `line` as it is."""
        due = self._end_of(line)
        if reason is not due:
            rule = "the text goes on" if due is None else f"that is {due.name}"
            raise ProtocolViolationError(f"it ended the text by {reason.name}; by the request's rules {rule}")

    def _check_end(self, verdict: Verdict, line: Line) -> None:
        ending, not_last = self.ending, verdict.token_ids[:-1]
        has_ended = verdict.position + len(verdict.token_ids) > len(line) and self._end_of(line) is not None
        if has_ended or not (ending.eos_token_ids.isdisjoint(not_last) and ending.stop_token_ids.isdisjoint(not_last)):
            raise ProtocolViolationError("a verdict has tokens after the end of the text")

    def _end_of(self, line: Line) -> FinishReason | None:
        return self.ending.reason(line.token_ids[-1], len(line)) if line.num_generated_tokens else None

    def _check_logprobs(self, logprobs: TokenLogprobs) -> None:
        num_top = min(self.num_logprobs or 0, self.vocab_size)
        if not len(logprobs.top_token_ids) == len(logprobs.top_logprobs) == num_top:
            raise ProtocolViolationError(
                f"a token has {len(logprobs.top_token_ids)} alternatives beside it, and {num_top} are due"
            )
        if not (
            all(0 <= token_id < self.vocab_size for token_id in logprobs.top_token_ids)
            and math.isfinite(logprobs.logprob)
            and all(map(math.isfinite, logprobs.top_logprobs))
        ):
            raise ProtocolViolationError(
                "log-probabilities are no finite numbers, or of token ids beyond the vocabulary"
            )
