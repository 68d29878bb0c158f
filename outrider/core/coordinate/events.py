"""What a generation tells its caller, as plain values: `Started`, then `Tokens` for each round, then `Finished`.

`Round` follows the tokens of each round if the caller has asked for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from outrider.core.coordinate.round import Round
from outrider.core.coordinate.statistics import Speculation
from outrider.core.protocol.messages import FinishReason, TokenLogprobs, TokenOrigin
from outrider.core.protocol.sampling import completion_seed


class GenerationMode(Enum):
    """How the tokens were produced. They are the same in each mode."""

    SPECULATIVE = 1
    """With a drafter from beginning to end, or by a verifier that drafts for itself."""
    TARGET_ONLY = 2
    """Without a drafter, be it the verifier's own; unless speculation was turned off, the verifier guesses what the
    text repeats."""
    DEGRADED = 3
    """With a drafter that was lost on the way, and without one from there on."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request was accepted."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    seed: int
    """The seed in force: the same request with it gives the same tokens."""
    trace_id: str
    """32 hexadecimal digits; empty if the request is not traced."""
    batch_invariant: bool = False
    """Whether the tokens are exactly the target's own, whatever is served beside them; see `GenerateStarted`."""
    target_identity_sha256: str = ""
    """See `ModelInfo` in common.proto."""
    kv_cache_dtype: str = ""
    """The target's; see `ModelInfo` in common.proto. If it is "fp8", the tokens are not exactly the target's own."""

    def seed_of(self, completion: int) -> int:
        """The seed with which that completion can be had alone."""
        return completion_seed(self.seed, completion)


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    token_id: int
    text: str
    """The part of the text that became certain with this token; may be empty."""
    origin: TokenOrigin
    logprobs: TokenLogprobs | None
    """Set if log-probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one round. They are committed: never revised, never repeated."""

    position: int
    """Absolute position of the first token, counted from the prompt's first."""
    text: str
    """The text of all tokens together."""
    tokens: tuple[Token, ...]
    rolled_back: bool
    """Whether this round voided the drafter's guesses."""
    num_draft_tokens: int
    """How many draft tokens the round scored."""
    completion: int = 0
    """Which completion they belong to."""
    num_cached_prompt_tokens: int = 0
    """In a completion's first round: see `Usage`."""

    def part(self, begin: int, end: int) -> Tokens:
        """The tokens from number `begin` to before `end`, as if they were a round."""
        tokens = self.tokens[begin:end]
        text = "".join(token.text for token in tokens)
        return replace(self, position=self.position + begin, text=text, tokens=tokens)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one completion."""

    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_prompt_tokens: int = 0
    """Tokens of the prompt whose keys and values the target had, from another session with the same beginning."""
    num_accepted_prediction_tokens: int = 0
    """Tokens of the request's prediction that stand in the output in their place."""
    num_rejected_prediction_tokens: int = 0
    """The other tokens of the prediction."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in milliseconds. See `Timings` in generation.proto."""

    first_token_ms: float
    total_ms: float
    verify_ms: float
    verify_wait_ms: float
    draft_ms: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A completion ended; the last event for it."""

    reason: FinishReason
    mode: GenerationMode
    mode_reason: str
    """Why the mode is not what was asked for; empty if it is."""
    text: str
    """Text that was held back until now."""
    usage: Usage
    speculation: Speculation
    timings: Timings
    completion: int = 0
    """Which completion ended."""


Event = Started | Tokens | Round | Finished
