"""What a step says of one session: its verdict, all but the log-probabilities of its tokens."""

from __future__ import annotations

from outrider.core.protocol.messages import ScoredNodes, Verdict
from outrider.core.schedule.step import KeyT
from outrider.core.schedule.verify_step import VerifyOutcome, VerifyPart, VerifyStep
from outrider.core.verify.decision import Decision


def verdict_of(
    part: VerifyPart[KeyT],
    decision: Decision,
    scored: ScoredNodes,
    num_cached_tokens: int,
    step: VerifyStep[KeyT],
    outcome: VerifyOutcome,
) -> Verdict:
    """The verdict on a `part` of a `step`; the session is as it was before. `num_cached_tokens` of its line were found
    in the prefix cache."""
    session = part.seated.session
    return Verdict(
        position=decision.position,
        token_ids=decision.token_ids,
        num_accepted=decision.num_accepted,
        num_draft_tokens=len(part.nodes),
        bonus=decision.bonus,
        num_stale_nodes=session.num_stale_nodes,
        verify_ms=outcome.seconds * 1000.0,
        wait_ms=max((outcome.started - session.last_verdict) * 1000.0, 0.0),
        probability_min=step.probability_min,
        num_cached_tokens=0 if session.num_rounds else num_cached_tokens,
        num_prompt_lookup=decision.num_prompt_lookup,
        num_accepted_prompt_lookup=decision.num_accepted_prompt_lookup,
        num_prediction=decision.num_prediction,
        num_accepted_prediction=decision.num_accepted_prediction,
        scored=scored,
        cutoff_ms=session.state.cutoff * 1000.0,
    )
