"""The report of a round."""

from __future__ import annotations

from outrider.core.coordinate.round import DraftStep, NodeFate, Round, RoundNode
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.v1 import generation_pb2 as pb

_FATES = {
    NodeFate.ACCEPTED: pb.NODE_FATE_ACCEPTED,
    NodeFate.FORESEEN: pb.NODE_FATE_FORESEEN,
    NodeFate.LIVE: pb.NODE_FATE_LIVE,
    NodeFate.DROPPED: pb.NODE_FATE_DROPPED,
}
_FATE_OF: dict[int, NodeFate] = {number: fate for fate, number in _FATES.items()}


def encode_round(event: Round) -> pb.Round:
    """What the coordinator tells the client."""
    return pb.Round(
        completion=event.completion,
        number=event.number,
        position=event.position,
        at_ms=event.at_ms,
        verify_ms=event.verify_ms,
        wait_ms=event.wait_ms,
        verifier=event.verifier,
        nodes=[_encode_node(node) for node in event.nodes],
        num_accepted_drafts=event.num_accepted_drafts,
        num_stale_nodes=event.num_stale_nodes,
        rolled_back=event.rolled_back,
        draft_steps=[pb.DraftStep(**step._asdict()) for step in event.draft_steps],
        mode_reason=event.mode_reason,
    )


def decode_round(message: pb.Round) -> Round:
    """Raises ProtocolViolationError for a fate that this version does not know."""
    return Round(
        completion=message.completion,
        number=message.number,
        position=message.position,
        at_ms=message.at_ms,
        verify_ms=message.verify_ms,
        wait_ms=message.wait_ms,
        verifier=message.verifier,
        nodes=tuple([_decode_node(node) for node in message.nodes]),
        num_accepted_drafts=message.num_accepted_drafts,
        num_stale_nodes=message.num_stale_nodes,
        rolled_back=message.rolled_back,
        draft_steps=tuple(
            [DraftStep(step.at_ms, step.draft_ms, step.num_nodes, step.drafter) for step in message.draft_steps]
        ),
        mode_reason=message.mode_reason,
    )


def _encode_node(node: RoundNode) -> pb.RoundNode:
    return pb.RoundNode(
        parent=node.parent,
        token_id=node.token_id,
        text=node.text,
        log_prob=node.log_prob,
        prompt_lookup=node.prompt_lookup,
        scored=node.scored,
        fate=_FATES[node.fate],
    )


def _decode_node(message: pb.RoundNode) -> RoundNode:
    fate = _FATE_OF.get(message.fate)
    if fate is None:
        raise ProtocolViolationError(f"the fate {message.fate} of a node is unspecified or unknown to this version")
    return RoundNode(
        parent=message.parent,
        token_id=message.token_id,
        text=message.text,
        log_prob=message.log_prob,
        prompt_lookup=message.prompt_lookup,
        scored=message.scored,
        fate=fate,
    )
