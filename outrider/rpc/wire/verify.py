"""The verify stream."""

from __future__ import annotations

from outrider.core.protocol.messages import (
    NOT_REPORTED,
    DraftWindow,
    EndDrafts,
    Opened,
    ScoredNodes,
    Verdict,
    VerifyCommand,
    VerifyFinished,
    VerifyOpen,
)
from outrider.rpc.wire.parts import (
    decode_drafted,
    decode_finish_reason,
    decode_sampling,
    decode_token_logprobs,
    decode_trace,
    encode_drafted,
    encode_finish_reason,
    encode_sampling,
    encode_token_logprobs,
    encode_trace,
    refuse_empty,
)
from outrider.v1 import verify_pb2


def encode_verify_command(
    command: VerifyCommand, message: verify_pb2.VerifyCommand | None = None
) -> verify_pb2.VerifyCommand:
    """What the coordinator tells a verifier."""
    message = verify_pb2.VerifyCommand() if message is None else message
    if isinstance(command, DraftWindow):
        encode_drafted(command, message.drafted)
    elif isinstance(command, VerifyOpen):
        message.open.CopyFrom(_encode_verify_open(command))
    else:
        message.drafts_ended.SetInParent()
    return message


def decode_verify_command(message: verify_pb2.VerifyCommand) -> VerifyCommand:
    """Raises ProtocolViolationError for an empty command."""
    match message.WhichOneof("command"):
        case "drafted":
            return decode_drafted(message.drafted)
        case "open":
            return _decode_verify_open(message.open)
        case "drafts_ended":
            return EndDrafts()
        case _:
            refuse_empty("VerifyCommand", "open, drafted or drafts_ended")


def encode_verify_event(
    event: Opened | Verdict | VerifyFinished, message: verify_pb2.VerifyEvent | None = None
) -> verify_pb2.VerifyEvent:
    """What a verifier tells the coordinator."""
    message = verify_pb2.VerifyEvent() if message is None else message
    if isinstance(event, Verdict):
        _encode_verdict(event, message.verdict)
    elif isinstance(event, Opened):
        message.opened.num_line_tokens = event.num_line_tokens
    else:
        message.finished.reason = encode_finish_reason(event.reason)
    return message


def decode_verify_event(message: verify_pb2.VerifyEvent) -> Opened | Verdict | VerifyFinished:
    """Raises ProtocolViolationError for an empty event or a finish without a reason."""
    match message.WhichOneof("event"):
        case "verdict":
            return _decode_verdict(message.verdict)
        case "opened":
            return Opened(message.opened.num_line_tokens)
        case "finished":
            return VerifyFinished(decode_finish_reason(message.finished.reason))
        case _:
            refuse_empty("VerifyEvent", "opened, verdict or finished")


def _encode_verify_open(opening: VerifyOpen) -> verify_pb2.VerifyOpen:
    return verify_pb2.VerifyOpen(
        session_id=opening.session_id,
        token_ids=opening.token_ids,
        num_prompt_tokens=opening.num_prompt_tokens,
        sampling=encode_sampling(opening.sampling),
        max_length=opening.max_length,
        stop_token_ids=sorted(opening.stop_token_ids),
        ignore_eos=opening.ignore_eos,
        max_draft_tokens=opening.max_draft_tokens,
        expect_drafts=opening.expect_drafts,
        num_logprobs=opening.num_logprobs,
        trace=encode_trace(opening.trace),
        time_left_ms=opening.time_left_ms,
        prediction_token_ids=opening.prediction_token_ids,
        report_scored=opening.report_scored,
        cache_salt=opening.cache_salt,
    )


def _decode_verify_open(message: verify_pb2.VerifyOpen) -> VerifyOpen:
    return VerifyOpen(
        session_id=message.session_id,
        token_ids=message.token_ids[:],
        num_prompt_tokens=message.num_prompt_tokens,
        sampling=decode_sampling(message.sampling),
        max_length=message.max_length,
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        max_draft_tokens=message.max_draft_tokens,
        expect_drafts=message.expect_drafts,
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        trace=decode_trace(message.trace),
        time_left_ms=message.time_left_ms if message.HasField("time_left_ms") else None,
        prediction_token_ids=tuple(message.prediction_token_ids),
        report_scored=message.report_scored,
        cache_salt=message.cache_salt,
    )


def _encode_verdict(verdict: Verdict, message: verify_pb2.Verdict) -> None:
    message.position = verdict.position
    message.token_ids.extend(verdict.token_ids)
    message.num_accepted = verdict.num_accepted
    message.num_draft_tokens = verdict.num_draft_tokens
    message.bonus = verdict.bonus
    message.num_stale_nodes = verdict.num_stale_nodes
    message.verify_ms = verdict.verify_ms
    message.wait_ms = verdict.wait_ms
    message.probability_min = verdict.probability_min
    message.num_cached_tokens = verdict.num_cached_tokens
    message.num_prompt_lookup = verdict.num_prompt_lookup
    message.num_accepted_prompt_lookup = verdict.num_accepted_prompt_lookup
    message.num_prediction = verdict.num_prediction
    message.num_accepted_prediction = verdict.num_accepted_prediction
    message.cutoff_ms = verdict.cutoff_ms
    if verdict.logprobs:
        message.logprobs.extend([encode_token_logprobs(logprobs) for logprobs in verdict.logprobs])
    if verdict.scored is not NOT_REPORTED:
        message.scored_parents.extend(verdict.scored.parents)
        message.scored_token_ids.extend(verdict.scored.token_ids)


def _decode_verdict(message: verify_pb2.Verdict) -> Verdict:
    return Verdict(
        position=message.position,
        token_ids=message.token_ids[:],
        num_accepted=message.num_accepted,
        num_draft_tokens=message.num_draft_tokens,
        bonus=message.bonus,
        num_stale_nodes=message.num_stale_nodes,
        verify_ms=message.verify_ms,
        wait_ms=message.wait_ms,
        probability_min=message.probability_min,
        logprobs=tuple(map(decode_token_logprobs, message.logprobs)),
        num_cached_tokens=message.num_cached_tokens,
        num_prompt_lookup=message.num_prompt_lookup,
        num_accepted_prompt_lookup=message.num_accepted_prompt_lookup,
        num_prediction=message.num_prediction,
        num_accepted_prediction=message.num_accepted_prediction,
        scored=_decode_scored(message) if message.scored_parents or message.scored_token_ids else NOT_REPORTED,
        cutoff_ms=message.cutoff_ms,
    )


def _decode_scored(message: verify_pb2.Verdict) -> ScoredNodes:
    return ScoredNodes(tuple(message.scored_parents), tuple(message.scored_token_ids))
