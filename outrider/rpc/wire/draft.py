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


def encode_draft_command(command: DraftOpen | Commitment) -> draft_pb2.DraftCommand:
    """What the coordinator tells a drafter; a commitment becomes a Commit or a Rollback."""
    if isinstance(command, DraftOpen):
        return draft_pb2.DraftCommand(open=_encode_draft_open(command))
    if command.rollback:
        return draft_pb2.DraftCommand(
            rollback=draft_pb2.Rollback(
                position=command.position,
                token_ids=command.token_ids,
                verify_ms=command.verify_ms,
                probability_min=command.probability_min,
            )
        )
    return draft_pb2.DraftCommand(
        commit=draft_pb2.Commit(
            position=command.position,
            token_ids=command.token_ids,
            verify_ms=command.verify_ms,
            probability_min=command.probability_min,
        )
    )


def decode_draft_command(message: draft_pb2.DraftCommand) -> DraftOpen | Commitment:
    """Raises ProtocolViolationError for an empty command."""
    match message.WhichOneof("command"):
        case "commit":
            commit = message.commit
            return Commitment(commit.position, commit.token_ids[:], False, commit.verify_ms, commit.probability_min)
        case "rollback":
            rollback = message.rollback
            return Commitment(
                rollback.position, rollback.token_ids[:], True, rollback.verify_ms, rollback.probability_min
            )
        case "open":
            return _decode_draft_open(message.open)
        case _:
            refuse_empty("DraftCommand", "open, commit or rollback")


def encode_draft_event(event: Opened | DraftWindow) -> draft_pb2.DraftEvent:
    """What a drafter tells the coordinator."""
    if isinstance(event, DraftWindow):
        return draft_pb2.DraftEvent(drafted=encode_drafted(event))
    return draft_pb2.DraftEvent(opened=draft_pb2.DraftOpened(num_line_tokens=event.num_line_tokens))


def decode_draft_event(message: draft_pb2.DraftEvent) -> Opened | DraftWindow:
    """Raises ProtocolViolationError for an empty event."""
    match message.WhichOneof("event"):
        case "drafted":
            return decode_drafted(message.drafted)
        case "opened":
            return Opened(message.opened.num_line_tokens)
        case _:
            refuse_empty("DraftEvent", "opened or drafted")


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
