"""What a generation tells its caller, as plain values, and how it is read from the wire."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum

from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import FinishReason, ModelInfo, TokenLogprobs, TokenOrigin, WorkerLoad
from outrider.core.protocol.sampling import completion_seed
from outrider.rpc import wire
from outrider.v1 import generation_pb2


class GenerationMode(Enum):
    """How the tokens were produced. They are the same in each mode."""

    SPECULATIVE = 1
    """With a drafter from beginning to end."""
    TARGET_ONLY = 2
    """Without a drafter; unless speculation was turned off, the verifier guesses what the text repeats."""
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


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one completion."""

    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_prompt_tokens: int = 0
    """Tokens of the prompt that the target had already read for another session with the same beginning."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """What speculation did. See `SpeculationStatistics` in generation.proto."""

    num_rounds: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_rollbacks: int
    num_drafted_nodes: int
    num_stale_nodes: int
    acceptance_length: float
    """Tokens committed per round, the next token included."""
    acceptance_histogram: tuple[int, ...]
    """At index i the number of rounds that accepted i draft tokens."""
    num_rejections: int
    num_recovered_token_hits: int
    """Rejections after which the recovered token had been drafted already."""
    num_bonuses: int
    num_bonus_hits: int
    """Bonus tokens that had been drafted already."""
    num_prompt_lookup_tokens: int
    """Of the scored draft tokens those that the verifier looked up itself."""
    num_accepted_prompt_lookup_tokens: int
    """Of the accepted ones."""

    @property
    def recovered_token_hit_rate(self) -> float:
        """Outcome hits per rejection; 0 if nothing was rejected."""
        return self.num_recovered_token_hits / self.num_rejections if self.num_rejections else 0.0

    @property
    def acceptance_by_depth(self) -> tuple[float, ...]:
        """At index i the share of rounds that accepted more than i draft tokens."""
        num_rounds = sum(self.acceptance_histogram)
        deeper = itertools.accumulate(reversed(self.acceptance_histogram[1:]))
        return tuple(num_deeper / num_rounds for num_deeper in deeper)[::-1]

    @property
    def acceptance_rate(self) -> float:
        """Accepted draft tokens per scored draft token; 0 if none was scored."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


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


Event = Started | Tokens | Finished


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker that the coordinator knows."""

    address: str
    service: str
    """`outrider.v1.DraftService` or `outrider.v1.VerifyService`."""
    serving: bool
    """Whether sessions are placed there."""
    problem: str
    """Why not; empty if they are."""
    model: ModelInfo | None
    """None while it has never answered."""
    load: WorkerLoad | None
    """None while it is not serving."""
    num_own_sessions: int
    """Sessions of this coordinator that are there."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What is served."""

    version: str
    protocol_version: int
    target: ModelInfo
    draft: ModelInfo | None
    """None while no matching drafter is reachable."""
    target_only_reason: str
    """Why requests would run by the target alone at present; empty if they would not."""
    num_running: int
    """Completions under way."""
    replicas: tuple[Replica, ...] = ()
    """Every worker that the coordinator knows."""


def decode_event(message: generation_pb2.GenerateResponse) -> Event:
    """Raises ProtocolViolationError for an event that says nothing or names an unknown enum value."""
    match message.WhichOneof("event"):
        case "tokens":
            return _decode_tokens(message.tokens)
        case "started":
            started = message.started
            return Started(started.request_id, tuple(started.prompt_token_ids), started.seed, started.trace_id)
        case "finished":
            return _decode_finished(message.finished)
        case _:
            raise ProtocolViolationError("the server sent an event that this version does not know; update the client")


def decode_server_info(message: generation_pb2.GetServerInfoResponse) -> ServerInfo:
    """What is served."""
    return ServerInfo(
        version=message.version,
        protocol_version=message.protocol_version,
        target=wire.decode_model_info(message.target),
        draft=wire.decode_model_info(message.draft) if message.HasField("draft") else None,
        target_only_reason=message.target_only_reason,
        num_running=message.num_running,
        replicas=tuple(_decode_replica(replica) for replica in message.replicas),
    )


def _decode_replica(message: generation_pb2.Replica) -> Replica:
    return Replica(
        address=message.address,
        service=message.service,
        serving=message.serving,
        problem=message.problem,
        model=wire.decode_model_info(message.model) if message.HasField("model") else None,
        load=wire.decode_load(message.load) if message.HasField("load") else None,
        num_own_sessions=message.num_own_sessions,
    )


def _decode_tokens(message: generation_pb2.GeneratedTokens) -> Tokens:
    tokens = tuple(
        Token(
            token_id=token.token_id,
            text=token.text,
            origin=wire.decode_token_origin(token.origin),
            logprobs=wire.decode_token_logprobs(token.logprobs) if token.HasField("logprobs") else None,
        )
        for token in message.tokens
    )
    return Tokens(
        position=message.position,
        text=message.text,
        tokens=tokens,
        rolled_back=message.rolled_back,
        num_draft_tokens=message.num_draft_tokens,
        completion=message.completion,
    )


def _decode_finished(message: generation_pb2.GenerateFinished) -> Finished:
    mode = _MODE_OF.get(message.mode)
    if mode is None:
        raise ProtocolViolationError(f"generation mode {message.mode} is unspecified or unknown to this version")
    usage, speculation, timings = message.usage, message.speculation, message.timings
    return Finished(
        reason=wire.decode_finish_reason(message.reason),
        mode=mode,
        mode_reason=message.mode_reason,
        text=message.text,
        usage=Usage(usage.num_prompt_tokens, usage.num_generated_tokens, usage.num_cached_prompt_tokens),
        speculation=Speculation(
            num_rounds=speculation.num_rounds,
            num_draft_tokens=speculation.num_draft_tokens,
            num_accepted_tokens=speculation.num_accepted_tokens,
            num_rollbacks=speculation.num_rollbacks,
            num_drafted_nodes=speculation.num_drafted_nodes,
            num_stale_nodes=speculation.num_stale_nodes,
            acceptance_length=speculation.acceptance_length,
            acceptance_histogram=tuple(speculation.acceptance_histogram),
            num_rejections=speculation.num_rejections,
            num_recovered_token_hits=speculation.num_recovered_token_hits,
            num_bonuses=speculation.num_bonuses,
            num_bonus_hits=speculation.num_bonus_hits,
            num_prompt_lookup_tokens=speculation.num_prompt_lookup_tokens,
            num_accepted_prompt_lookup_tokens=speculation.num_accepted_prompt_lookup_tokens,
        ),
        timings=Timings(
            first_token_ms=timings.first_token_ms,
            total_ms=timings.total_ms,
            verify_ms=timings.verify_ms,
            verify_wait_ms=timings.verify_wait_ms,
            draft_ms=timings.draft_ms,
        ),
        completion=message.completion,
    )


_MODE_OF: dict[int, GenerationMode] = {
    generation_pb2.GENERATION_MODE_SPECULATIVE: GenerationMode.SPECULATIVE,
    generation_pb2.GENERATION_MODE_TARGET_ONLY: GenerationMode.TARGET_ONLY,
    generation_pb2.GENERATION_MODE_DEGRADED: GenerationMode.DEGRADED,
}
