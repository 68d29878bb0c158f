"""Messages: what crosses a stream, as plain values. `rpc/wire/` alone knows how they look in protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from outrider.core.protocol.sampling import SamplingParams


class FinishReason(Enum):
    """Why a generation ended."""

    EOS = 1
    LENGTH = 2
    STOP_TOKEN = 3
    STOP_STRING = 4


class TokenOrigin(Enum):
    """Where a generated token came from."""

    ACCEPTED = 1
    """Drafted, and accepted by the target."""
    RECOVERED = 2
    """Added by the target where it disagreed with the draft."""
    BONUS = 3
    """Added by the target after it had accepted a path to its end."""
    TARGET = 4
    """Decoded by the target with no draft at hand."""


class TraceContext(NamedTuple):
    """W3C trace context; empty strings when the request is not traced."""

    traceparent: str
    tracestate: str


NOT_TRACED = TraceContext("", "")


class TokenLogprobs(NamedTuple):
    """Log-probabilities of one committed token under the target's unprocessed logits."""

    logprob: float
    top_token_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


class ModelInfo(NamedTuple):
    """What a worker serves."""

    name: str
    model_type: str
    vocab_size: int
    tokenizer_sha256: str
    eos_token_ids: tuple[int, ...]
    max_context: int
    max_sessions: int
    num_parameters: int
    dtype: str
    device: str
    protocol_version: int
    instance_id: str
    identity_sha256: str = ""
    memory_limit_bytes: int = 0
    kv_cache_bytes: int = 0
    batch_invariant: bool = False
    attention: str = ""
    forward_pass: str = ""
    token_choice: str = ""
    not_taken: tuple[str, ...] = ()
    weights: str = ""
    kv_cache_dtype: str = ""
    draft_model: str = ""
    unproven: str = ""


DEFAULT_TEMPLATE: Final = "default"
"""Name of a model's only chat template, or of that for what no other is for."""
TOOL_USE_TEMPLATE: Final = "tool_use"
"""Name of the chat template for conversations with tools, where a model has one of its own for them."""


class PortableTokenizer(NamedTuple):
    """A target's tokenizer, and what makes prompts of conversations, for who has no model folder."""

    json: bytes
    """A tokenizer.json with which `tokenizers` alone makes AutoTokenizer's ids, without truncation and padding."""
    chat_templates: Mapping[str, str]
    """Jinja by name: "default", perhaps "tool_use" and others; none if the model has none."""
    special_tokens: Mapping[str, str]
    """By the names that templates know them by, such as "bos_token"."""

    @property
    def num_template_bytes(self) -> int:
        """Size of what is there for conversations."""
        return sum(len(text.encode()) for part in self[1:] for pair in part.items() for text in pair)


class WorkerLoad(NamedTuple):
    """How busy a worker is. See `WorkerLoad` in common.proto."""

    instance_id: str
    num_sessions: int
    num_queued: int
    num_queued_tokens: int
    num_kv_tokens: int
    num_free_kv_tokens: int
    step_ms: float
    num_prompt_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    progress: int = 0
    is_busy: bool = False


@dataclass(frozen=True, slots=True)
class DraftWindow:
    """Draft nodes, parents before children; node i has id `first_id + i`. See `Drafted` in common.proto."""

    base: int
    first_id: int
    parent_ids: Sequence[int]
    token_ids: Sequence[int]
    log_probs: Sequence[float]
    draft_ms: float = 0.0
    sent_ms: float = 0.0
    """By the drafter's own clock; 0 while unknown."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class EndDrafts:
    """Tells a verifier that no drafts will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOpen:
    """Opens a session at a drafter."""

    session_id: str
    token_ids: Sequence[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    max_run_ahead: int
    tree_width: int
    max_length: int
    vocab_size: int
    trace: TraceContext = NOT_TRACED
    cache_salt: str = ""
    """Sessions with the same one share what has been computed of their lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOpen:
    """Opens a session at a verifier."""

    session_id: str
    token_ids: Sequence[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    max_length: int
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    max_draft_tokens: int = 0
    expect_drafts: bool = False
    num_logprobs: int | None = None
    trace: TraceContext = NOT_TRACED
    time_left_ms: int | None = None
    """Until the request's deadline, if it has one."""
    prediction_token_ids: Sequence[int] = ()
    """What is expected to follow the prompt; empty if nothing is known."""
    report_scored: bool = False
    """Whether verdicts are to tell which nodes they scored."""
    cache_salt: str = ""
    """Sessions with the same one share what has been computed of their lines."""


VerifyCommand = VerifyOpen | DraftWindow | EndDrafts
"""What a coordinator tells a verifier."""


class Commitment(NamedTuple):
    """Committed tokens on their way to the drafter: a Commit, or a Rollback when `rollback` is set."""

    position: int
    token_ids: Sequence[int]
    rollback: bool
    verify_ms: float = 0.0
    probability_min: float = 0.0
    """See `Verdict.probability_min`."""
    cutoff_ms: float = 0.0
    """See `Verdict.cutoff_ms`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The session has a slot at the worker."""

    num_line_tokens: int


class ScoredNodes(NamedTuple):
    """What a round scored, parents before children, and what the verifier looked up last."""

    parents: Sequence[int]
    """For each node the number of the one before it, counted from 1; 0 for the last token before the round."""
    token_ids: Sequence[int]


NOT_REPORTED: Final = ScoredNodes((), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One round: accepted draft tokens and the next token, all committed. See `Verdict` in verify.proto."""

    position: int
    token_ids: Sequence[int]
    num_accepted: int
    num_draft_tokens: int
    bonus: bool = False
    num_stale_nodes: int = 0
    verify_ms: float = 0.0
    wait_ms: float = 0.0
    probability_min: float = 0.0
    """Chance from which scoring one more guess would have been worth its time in this step; 0 while unknown."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    num_cached_tokens: int = 0
    """In the first verdict: how many tokens of the line were found already read, for another session."""
    num_prompt_lookup: int = 0
    """Of the scored draft tokens those that the verifier looked up itself."""
    num_accepted_prompt_lookup: int = 0
    """Of the accepted ones."""
    num_prediction: int = 0
    """Of the scored draft tokens those that the verifier took from the prediction."""
    num_accepted_prediction: int = 0
    """Of the accepted ones."""
    scored: ScoredNodes = NOT_REPORTED
    """Empty unless asked for."""
    cutoff_ms: float = 0.0
    """When a window had to be sent at the latest to be in the round, by the clock of `DraftWindow.sent_ms`; 0 while
    unknown."""


@dataclass(frozen=True, slots=True)
class VerifyFinished:
    """The session ended by its own rules."""

    reason: FinishReason
