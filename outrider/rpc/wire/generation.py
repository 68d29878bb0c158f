"""The public stream and the public request."""

from __future__ import annotations

import json
from typing import Any

from outrider.core.coordinate.events import (
    Event,
    Finished,
    GenerationMode,
    Started,
    Timings,
    Token,
    Tokens,
    Usage,
)
from outrider.core.coordinate.round import Round
from outrider.core.coordinate.server_info import Replica, ServerInfo
from outrider.core.coordinate.statistics import COUNTERS, Speculation
from outrider.core.protocol.chat_prompt import ChatPrompt
from outrider.core.protocol.errors import FieldViolation, InvalidRequestError, ProtocolViolationError
from outrider.core.protocol.options import GenerationOptions, Prompt
from outrider.rpc.channels import MESSAGE_BYTES_MAX
from outrider.rpc.wire.parts import (
    decode_finish_reason,
    decode_load,
    decode_model_info,
    decode_sampling,
    decode_token_logprobs,
    decode_token_origin,
    encode_finish_reason,
    encode_load,
    encode_model_info,
    encode_sampling,
    encode_token_logprobs,
    encode_token_origin,
)
from outrider.rpc.wire.resume import decode_resume, encode_resume
from outrider.rpc.wire.round import decode_round, encode_round
from outrider.v1 import generation_pb2 as pb

_MODES = {
    GenerationMode.SPECULATIVE: pb.GENERATION_MODE_SPECULATIVE,
    GenerationMode.TARGET_ONLY: pb.GENERATION_MODE_TARGET_ONLY,
    GenerationMode.DEGRADED: pb.GENERATION_MODE_DEGRADED,
}
_MODE_OF: dict[int, GenerationMode] = {number: mode for mode, number in _MODES.items()}


def encode_generate_request(prompt: Prompt | ChatPrompt, options: GenerationOptions) -> pb.GenerateRequest:
    """Raises InvalidRequestError for what no message can hold, such as a negative token id or too many bytes."""
    try:
        message = pb.GenerateRequest(
            text=prompt if isinstance(prompt, str) else None,
            chat=_encode_chat(prompt) if isinstance(prompt, ChatPrompt) else None,
            token_ids=None if isinstance(prompt, str | ChatPrompt) else pb.TokenIds(ids=prompt),
            add_special_tokens=None if options.add_special_tokens else False,
            sampling=encode_sampling(options.sampling),
            max_tokens=options.max_tokens,
            stop=options.stop,
            stop_token_ids=options.stop_token_ids,
            ignore_eos=options.ignore_eos,
            num_logprobs=options.num_logprobs,
            speculation=pb.SpeculationParams(
                enabled=options.speculate,
                max_draft_tokens=options.max_draft_tokens,
                tree_width=options.tree_width,
                prediction=options.prediction,
                report_rounds=options.report_rounds,
            ),
            num_completions=options.num_completions,
            resume=encode_resume(options.resume) if options.resume is not None else None,
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequestError([FieldViolation("request", f"cannot be sent: {error}")]) from error
    if options.draw_seed:
        message.sampling.ClearField("seed")
    if (num_bytes := message.ByteSize()) > MESSAGE_BYTES_MAX:  # gRPC's own words are those of a server without room
        text = f"cannot be sent: it has {num_bytes} bytes, and {MESSAGE_BYTES_MAX} are the most of a message"
        raise InvalidRequestError([FieldViolation("request", text)])
    return message


def decode_generate_request(message: pb.GenerateRequest) -> tuple[Prompt | ChatPrompt, GenerationOptions]:
    """Raises InvalidRequestError for a request without a prompt; bounds are not checked here."""
    match message.WhichOneof("prompt"):
        case "token_ids":
            prompt = message.token_ids.ids[:]
        case "text":
            prompt = message.text
        case "chat":
            prompt = _decode_chat(message.chat)
        case _:
            raise InvalidRequestError([FieldViolation("prompt", "set text, token_ids or chat")])
    speculation = message.speculation
    return prompt, GenerationOptions(
        add_special_tokens=not message.HasField("add_special_tokens") or message.add_special_tokens,
        sampling=decode_sampling(message.sampling),
        draw_seed=not message.sampling.HasField("seed"),
        max_tokens=_optional(message, "max_tokens"),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        num_logprobs=_optional(message, "num_logprobs"),
        speculate=not speculation.HasField("enabled") or speculation.enabled,
        max_draft_tokens=_optional(speculation, "max_draft_tokens"),
        tree_width=_optional(speculation, "tree_width"),
        prediction=speculation.prediction,
        report_rounds=speculation.report_rounds,
        num_completions=_optional(message, "num_completions"),
        resume=decode_resume(message.resume) if message.HasField("resume") else None,
    )


def _encode_chat(prompt: ChatPrompt) -> pb.ChatPrompt:
    if prompt.tools or prompt.add_generation_prompt is prompt.continue_final_message:
        raise ValueError("a conversation with tools, or without a place for the answer, has no form in gRPC")
    return pb.ChatPrompt(
        messages=[pb.ChatMessage(**message) for message in prompt.messages],
        continue_final_message=prompt.continue_final_message,
        chat_template_kwargs={name: json.dumps(value) for name, value in prompt.chat_template_kwargs.items()},
    )


def _decode_chat(message: pb.ChatPrompt) -> ChatPrompt:
    try:
        kwargs = {name: json.loads(value) for name, value in message.chat_template_kwargs.items()}
    except (RecursionError, ValueError) as error:
        raise InvalidRequestError([FieldViolation("chat.chat_template_kwargs", f"must be JSON: {error}")]) from error
    return ChatPrompt(
        messages=[{"role": each.role, "content": each.content} for each in message.messages],
        add_generation_prompt=not message.continue_final_message,
        continue_final_message=message.continue_final_message,
        chat_template_kwargs=kwargs,
    )


def encode_event(event: Event) -> pb.GenerateResponse:
    """What the coordinator tells the client."""
    match event:
        case Tokens():
            response = pb.GenerateResponse()
            _encode_tokens(event, response.tokens)
            return response
        case Started():
            return pb.GenerateResponse(
                started=pb.GenerateStarted(
                    request_id=event.request_id,
                    prompt_token_ids=event.prompt_token_ids,
                    seed=event.seed,
                    trace_id=event.trace_id,
                    batch_invariant=event.batch_invariant,
                    target_identity_sha256=event.target_identity_sha256,
                    kv_cache_dtype=event.kv_cache_dtype,
                )
            )
        case Finished():
            return pb.GenerateResponse(finished=_encode_finished(event))
        case Round():
            return pb.GenerateResponse(round=encode_round(event))


def decode_event(message: pb.GenerateResponse) -> Event:
    """Raises ProtocolViolationError for an event that says nothing or names an unknown enum value."""
    match message.WhichOneof("event"):
        case "tokens":
            return _decode_tokens(message.tokens)
        case "started":
            started = message.started
            return Started(
                started.request_id,
                tuple(started.prompt_token_ids),
                started.seed,
                started.trace_id,
                started.batch_invariant,
                started.target_identity_sha256,
                started.kv_cache_dtype,
            )
        case "finished":
            return _decode_finished(message.finished)
        case "round":
            return decode_round(message.round)
        case _:
            raise ProtocolViolationError("the server sent an event that this version does not know; update the client")


def encode_server_info(info: ServerInfo) -> pb.GetServerInfoResponse:
    """What is served."""
    return pb.GetServerInfoResponse(
        version=info.version,
        protocol_version=info.protocol_version,
        target=encode_model_info(info.target),
        draft=encode_model_info(info.draft) if info.draft is not None else None,
        target_only_reason=info.target_only_reason,
        num_running=info.num_running,
        replicas=[_encode_replica(replica) for replica in info.replicas],
    )


def decode_server_info(message: pb.GetServerInfoResponse) -> ServerInfo:
    """What is served."""
    return ServerInfo(
        version=message.version,
        protocol_version=message.protocol_version,
        target=decode_model_info(message.target),
        draft=decode_model_info(message.draft) if message.HasField("draft") else None,
        target_only_reason=message.target_only_reason,
        num_running=message.num_running,
        replicas=tuple(_decode_replica(replica) for replica in message.replicas),
    )


def _encode_replica(replica: Replica) -> pb.Replica:
    return pb.Replica(
        address=replica.address,
        service=replica.service,
        serving=replica.serving,
        problem=replica.problem,
        model=encode_model_info(replica.model) if replica.model is not None else None,
        load=encode_load(replica.load) if replica.load is not None else None,
        num_own_sessions=replica.num_own_sessions,
    )


def _decode_replica(message: pb.Replica) -> Replica:
    return Replica(
        address=message.address,
        service=message.service,
        serving=message.serving,
        problem=message.problem,
        model=decode_model_info(message.model) if message.HasField("model") else None,
        load=decode_load(message.load) if message.HasField("load") else None,
        num_own_sessions=message.num_own_sessions,
    )


def _encode_tokens(event: Tokens, message: pb.GeneratedTokens) -> None:
    message.position = event.position
    message.text = event.text
    for token in event.tokens:
        part = message.tokens.add()
        part.token_id = token.token_id
        part.text = token.text
        part.origin = encode_token_origin(token.origin)
        if token.logprobs is not None:
            part.logprobs.CopyFrom(encode_token_logprobs(token.logprobs))
    message.rolled_back = event.rolled_back
    message.num_draft_tokens = event.num_draft_tokens
    message.completion = event.completion
    message.num_cached_prompt_tokens = event.num_cached_prompt_tokens


def _decode_tokens(message: pb.GeneratedTokens) -> Tokens:
    tokens = tuple(
        Token(
            token_id=token.token_id,
            text=token.text,
            origin=decode_token_origin(token.origin),
            logprobs=decode_token_logprobs(token.logprobs) if token.HasField("logprobs") else None,
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
        num_cached_prompt_tokens=message.num_cached_prompt_tokens,
    )


def _encode_finished(event: Finished) -> pb.GenerateFinished:
    usage, speculation, timings = event.usage, event.speculation, event.timings
    return pb.GenerateFinished(
        reason=encode_finish_reason(event.reason),
        mode=_MODES[event.mode],
        mode_reason=event.mode_reason,
        text=event.text,
        usage=pb.Usage(
            num_prompt_tokens=usage.num_prompt_tokens,
            num_generated_tokens=usage.num_generated_tokens,
            num_cached_prompt_tokens=usage.num_cached_prompt_tokens,
            num_accepted_prediction_tokens=usage.num_accepted_prediction_tokens,
            num_rejected_prediction_tokens=usage.num_rejected_prediction_tokens,
        ),
        speculation=pb.SpeculationStatistics(
            **_counts(speculation),
            acceptance_length=speculation.acceptance_length,
            acceptance_histogram=speculation.acceptance_histogram,
        ),
        timings=pb.Timings(
            first_token_ms=timings.first_token_ms,
            total_ms=timings.total_ms,
            verify_ms=timings.verify_ms,
            verify_wait_ms=timings.verify_wait_ms,
            draft_ms=timings.draft_ms,
        ),
        completion=event.completion,
    )


def _decode_finished(message: pb.GenerateFinished) -> Finished:
    mode = _MODE_OF.get(message.mode)
    if mode is None:
        raise ProtocolViolationError(f"generation mode {message.mode} is unspecified or unknown to this version")
    usage, speculation, timings = message.usage, message.speculation, message.timings
    return Finished(
        reason=decode_finish_reason(message.reason),
        mode=mode,
        mode_reason=message.mode_reason,
        text=message.text,
        usage=Usage(
            usage.num_prompt_tokens,
            usage.num_generated_tokens,
            usage.num_cached_prompt_tokens,
            usage.num_accepted_prediction_tokens,
            usage.num_rejected_prediction_tokens,
        ),
        speculation=Speculation(
            **_counts(speculation),
            acceptance_length=speculation.acceptance_length,
            acceptance_histogram=tuple(speculation.acceptance_histogram),
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


def _counts(source: Speculation | pb.SpeculationStatistics) -> dict[str, Any]:
    return {counter.field: getattr(source, counter.field) for counter in COUNTERS}


def _optional(message: pb.GenerateRequest | pb.SpeculationParams, field: str) -> int | None:
    return getattr(message, field) if message.HasField(field) else None  # pyright: ignore[reportArgumentType]
