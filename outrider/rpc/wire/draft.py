"""The draft stream."""

from __future__ import annotations

from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.rpc.wire.parts import (
    decode_drafted,
    decode_sampling,
    decode_trace,
    encode_drafted,
    encode_sampling,
    encode_trace,
    refuse_empty,
)
from outrider.v1 import draft_pb2


def encode_draft_command(
    command: DraftOpen | Commitment, message: draft_pb2.DraftCommand | None = None
) -> draft_pb2.DraftCommand:
    """What the coordinator tells a drafter; a commitment becomes a Commit or a Rollback."""
    message = draft_pb2.DraftCommand() if message is None else message
    if isinstance(command, DraftOpen):
        message.open.CopyFrom(_encode_draft_open(command))
        return message
    commitment = message.rollback if command.rollback else message.commit
    commitment.position = command.position
    commitment.token_ids.extend(command.token_ids)
    commitment.verify_ms = command.verify_ms
    commitment.probability_min = command.probability_min
    commitment.cutoff_ms = command.cutoff_ms
    return message


def decode_draft_command(message: draft_pb2.DraftCommand) -> DraftOpen | Commitment:
    """Raises ProtocolViolationError for an empty command."""
    match message.WhichOneof("command"):
        case "commit":
            return _decode_commitment(message.commit, rollback=False)
        case "rollback":
            return _decode_commitment(message.rollback, rollback=True)
        case "open":
            return _decode_draft_open(message.open)
        case _:
            refuse_empty("DraftCommand", "open, commit or rollback")


def encode_draft_event(
    event: Opened | DraftWindow, message: draft_pb2.DraftEvent | None = None
) -> draft_pb2.DraftEvent:
    """What a drafter tells the coordinator."""
    message = draft_pb2.DraftEvent() if message is None else message
    if isinstance(event, DraftWindow):
        encode_drafted(event, message.drafted)
    else:
        message.opened.num_line_tokens = event.num_line_tokens
    return message


def decode_draft_event(message: draft_pb2.DraftEvent) -> Opened | DraftWindow:
    """Raises ProtocolViolationError for an empty event."""
    match message.WhichOneof("event"):
        case "drafted":
            return decode_drafted(message.drafted)
        case "opened":
            return Opened(message.opened.num_line_tokens)
        case _:
            refuse_empty("DraftEvent", "opened or drafted")


def _decode_commitment(message: draft_pb2.Commit | draft_pb2.Rollback, *, rollback: bool) -> Commitment:
    return Commitment(
        message.position,
        message.token_ids[:],
        rollback,
        message.verify_ms,
        message.probability_min,
        message.cutoff_ms,
    )


def _encode_draft_open(opening: DraftOpen) -> draft_pb2.DraftOpen:
    return draft_pb2.DraftOpen(
        session_id=opening.session_id,
        token_ids=opening.token_ids,
        num_prompt_tokens=opening.num_prompt_tokens,
        sampling=encode_sampling(opening.sampling),
        max_run_ahead=opening.max_run_ahead,
        tree_width=opening.tree_width,
        max_length=opening.max_length,
        vocab_size=opening.vocab_size,
        trace=encode_trace(opening.trace),
        cache_salt=opening.cache_salt,
    )


def _decode_draft_open(message: draft_pb2.DraftOpen) -> DraftOpen:
    return DraftOpen(
        session_id=message.session_id,
        token_ids=message.token_ids[:],
        num_prompt_tokens=message.num_prompt_tokens,
        sampling=decode_sampling(message.sampling),
        max_run_ahead=message.max_run_ahead,
        tree_width=message.tree_width,
        max_length=message.max_length,
        vocab_size=message.vocab_size,
        trace=decode_trace(message.trace),
        cache_salt=message.cache_salt,
    )
