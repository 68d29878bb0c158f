"""Parts of messages that several streams share."""

from __future__ import annotations

from typing import Any, NoReturn

from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, ProtocolViolationError
from outrider.core.protocol.grammar import Grammar, GrammarKind
from outrider.core.protocol.messages import (
    DraftWindow,
    FinishReason,
    ModelInfo,
    TokenLogprobs,
    TokenOrigin,
    TraceContext,
    WorkerLoad,
)
from outrider.core.protocol.sampling import SamplingParams
from outrider.v1 import common_pb2, generation_pb2

_OPTIONAL_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
"""Fields of SamplingParams with explicit presence; their defaults stand in the core's SamplingParams alone."""

_FINISH_REASONS = {
    FinishReason.EOS: common_pb2.FINISH_REASON_EOS,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.STOP_TOKEN: common_pb2.FINISH_REASON_STOP_TOKEN,
    FinishReason.STOP_STRING: common_pb2.FINISH_REASON_STOP_STRING,
}
_FINISH_REASON_OF: dict[int, FinishReason] = {number: reason for reason, number in _FINISH_REASONS.items()}
_TOKEN_ORIGINS = {
    TokenOrigin.ACCEPTED: generation_pb2.TOKEN_ORIGIN_ACCEPTED,
    TokenOrigin.RECOVERED: generation_pb2.TOKEN_ORIGIN_RECOVERED,
    TokenOrigin.BONUS: generation_pb2.TOKEN_ORIGIN_BONUS,
    TokenOrigin.TARGET: generation_pb2.TOKEN_ORIGIN_TARGET,
}
_TOKEN_ORIGIN_OF: dict[int, TokenOrigin] = {number: origin for origin, number in _TOKEN_ORIGINS.items()}


def encode_sampling(sampling: SamplingParams) -> common_pb2.SamplingParams:
    """Every field is set, defaults too. Floats are rounded to single precision."""
    return common_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        seed=sampling.seed,
        grammar=None if sampling.grammar is None else _encode_grammar(sampling.grammar),
    )


def decode_sampling(message: common_pb2.SamplingParams) -> SamplingParams:
    """An unset field takes its default. Raises InvalidRequestError for a grammar without one."""
    present: dict[str, Any] = {
        name: getattr(message, name) for name in _OPTIONAL_SAMPLING_FIELDS if message.HasField(name)
    }
    grammar = _decode_grammar(message.grammar) if message.HasField("grammar") else None
    return SamplingParams(logit_bias=tuple(sorted(message.logit_bias.items())), grammar=grammar, **present)


def _encode_grammar(grammar: Grammar) -> common_pb2.Grammar:
    source: dict[str, Any] = {grammar.kind.value: grammar.source}
    return common_pb2.Grammar(begins_after=grammar.begins_after, **source)


def _decode_grammar(message: common_pb2.Grammar) -> Grammar:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequestError([FieldViolation("sampling.grammar", "set json_schema, regex or lark")])
    return Grammar(GrammarKind(kind), getattr(message, kind), message.begins_after)


def encode_token_logprobs(logprobs: TokenLogprobs) -> common_pb2.TokenLogprobs:
    """Log-probabilities of one committed token."""
    return common_pb2.TokenLogprobs(
        logprob=logprobs.logprob, top_token_ids=logprobs.top_token_ids, top_logprobs=logprobs.top_logprobs
    )


def decode_token_logprobs(message: common_pb2.TokenLogprobs) -> TokenLogprobs:
    """Raises ProtocolViolationError unless each alternative has its log-probability."""
    if len(message.top_token_ids) != len(message.top_logprobs):
        raise ProtocolViolationError("top_token_ids and top_logprobs of a token must have one length")
    return TokenLogprobs(message.logprob, tuple(message.top_token_ids), tuple(message.top_logprobs))


def encode_trace(trace: TraceContext) -> common_pb2.TraceContext:
    """W3C trace context."""
    return common_pb2.TraceContext(traceparent=trace.traceparent, tracestate=trace.tracestate)


def decode_trace(message: common_pb2.TraceContext) -> TraceContext:
    """An unset message decodes to NOT_TRACED."""
    return TraceContext(message.traceparent, message.tracestate)


def encode_model_info(info: ModelInfo) -> common_pb2.ModelInfo:
    """What a worker serves."""
    return common_pb2.ModelInfo(**info._asdict())


def decode_model_info(message: common_pb2.ModelInfo) -> ModelInfo:
    """What a worker serves."""
    return ModelInfo(
        name=message.name,
        model_type=message.model_type,
        vocab_size=message.vocab_size,
        tokenizer_sha256=message.tokenizer_sha256,
        eos_token_ids=tuple(message.eos_token_ids),
        max_context=message.max_context,
        max_sessions=message.max_sessions,
        num_parameters=message.num_parameters,
        dtype=message.dtype,
        device=message.device,
        protocol_version=message.protocol_version,
        instance_id=message.instance_id,
        identity_sha256=message.identity_sha256,
        memory_limit_bytes=message.memory_limit_bytes,
        kv_cache_bytes=message.kv_cache_bytes,
        batch_invariant=message.batch_invariant,
        attention=message.attention,
        forward_pass=message.forward_pass,
        token_choice=message.token_choice,
        not_taken=tuple(message.not_taken),
        weights=message.weights,
        kv_cache_dtype=message.kv_cache_dtype,
        draft_model=message.draft_model,
        unproven=message.unproven,
    )


def encode_load(load: WorkerLoad) -> common_pb2.WorkerLoad:
    """How busy a worker is."""
    return common_pb2.WorkerLoad(**load._asdict())


def decode_load(message: common_pb2.WorkerLoad) -> WorkerLoad:
    """How busy a worker is."""
    return WorkerLoad(
        instance_id=message.instance_id,
        num_sessions=message.num_sessions,
        num_queued=message.num_queued,
        num_queued_tokens=message.num_queued_tokens,
        num_kv_tokens=message.num_kv_tokens,
        num_free_kv_tokens=message.num_free_kv_tokens,
        step_ms=message.step_ms,
        num_prompt_tokens=message.num_prompt_tokens,
        num_cached_prompt_tokens=message.num_cached_prompt_tokens,
        progress=message.progress,
        is_busy=message.is_busy,
    )


def encode_finish_reason(reason: FinishReason) -> common_pb2.FinishReason:
    """Why a generation ended."""
    return _FINISH_REASONS[reason]


def decode_finish_reason(number: int) -> FinishReason:
    """Raises ProtocolViolationError for an unspecified or unknown reason."""
    reason = _FINISH_REASON_OF.get(number)
    if reason is None:
        raise ProtocolViolationError(f"finish reason {number} is unspecified or unknown to this version")
    return reason


def encode_token_origin(origin: TokenOrigin) -> generation_pb2.TokenOrigin:
    """Where a token came from."""
    return _TOKEN_ORIGINS[origin]


def decode_token_origin(number: int) -> TokenOrigin:
    """Raises ProtocolViolationError for an unspecified or unknown origin."""
    origin = _TOKEN_ORIGIN_OF.get(number)
    if origin is None:
        raise ProtocolViolationError(f"token origin {number} is unspecified or unknown to this version")
    return origin


def encode_drafted(window: DraftWindow, message: common_pb2.Drafted | None = None) -> common_pb2.Drafted:
    """A window of draft nodes."""
    message = common_pb2.Drafted() if message is None else message
    message.base = window.base
    message.first_id = window.first_id
    message.parent_ids.extend(window.parent_ids)
    message.token_ids.extend(window.token_ids)
    message.log_probs.extend(window.log_probs)
    message.draft_ms = window.draft_ms
    message.sent_ms = window.sent_ms
    return message


def decode_drafted(message: common_pb2.Drafted) -> DraftWindow:
    """A window of draft nodes, unchecked: `naming.Inbound` checks it against the stream's history."""
    return DraftWindow(
        base=message.base,
        first_id=message.first_id,
        parent_ids=message.parent_ids[:],  # a slice is a list, made in one go
        token_ids=message.token_ids[:],
        log_probs=message.log_probs[:],
        draft_ms=message.draft_ms,
        sent_ms=message.sent_ms,
    )


def refuse_empty(name: str, expected: str) -> NoReturn:
    """Raises ProtocolViolationError for a message whose oneof is unset."""
    raise ProtocolViolationError(f"a {name} carries none of {expected}; set exactly one of them")
