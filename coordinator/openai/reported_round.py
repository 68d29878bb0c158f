"""What a stream's chunk tells of a round, for those who ask: its tokens, and what became of the guesses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from outrider.core.coordinate.events import Token, Tokens
from outrider.core.coordinate.round import Round
from outrider.core.protocol.messages import TokenOrigin


class ReportedRound(NamedTuple):
    """The body. See `Round` in generation.proto; names of enum values are in lower case."""

    index: int
    """The choice."""
    number: int
    position: int
    at_ms: float
    verify_ms: float
    wait_ms: float
    verifier: int
    tokens: list[dict[str, Any]]
    """What was committed: `token_id`, `text` (which becomes certain with it), and `origin`, which is `prompt_lookup`
    for an accepted token that the verifier had looked up."""
    nodes: list[dict[str, Any]]
    num_stale_nodes: int
    rolled_back: bool
    draft_steps: list[dict[str, Any]]
    mode_reason: str


def reported(index: int, tokens: Tokens, event: Round) -> ReportedRound:
    """The report of the round of `tokens`, of the choice at `index`."""
    return ReportedRound(
        index=index,
        number=event.number,
        position=event.position,
        at_ms=event.at_ms,
        verify_ms=event.verify_ms,
        wait_ms=event.wait_ms,
        verifier=event.verifier,
        tokens=[*_tokens(tokens.tokens, event)],
        nodes=[{**node._asdict(), "fate": node.fate.name.lower()} for node in event.nodes],
        num_stale_nodes=event.num_stale_nodes,
        rolled_back=event.rolled_back,
        draft_steps=[step._asdict() for step in event.draft_steps],
        mode_reason=event.mode_reason,
    )


def _tokens(tokens: Sequence[Token], event: Round) -> Iterator[dict[str, Any]]:
    for number, token in enumerate(tokens):
        is_looked_up = token.origin is TokenOrigin.ACCEPTED and number >= event.num_accepted_drafts
        origin = "prompt_lookup" if is_looked_up else token.origin.name.lower()
        yield {"token_id": token.token_id, "text": token.text, "origin": origin}
