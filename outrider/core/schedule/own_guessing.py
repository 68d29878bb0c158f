"""Whether sessions without a drafter guess by themselves.

A step's own time tells what it costs to score a guess. It does not tell what it costs to look for some, with eight
sampled sessions a tenth of a step, guesses or none; nor what waits for the interpreter meanwhile. So the time from
verdict to verdict is compared, with own guesses and without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic

from outrider.core.schedule.admission import Seated
from outrider.core.schedule.policy import VerifyPolicy
from outrider.core.schedule.step import KeyT
from outrider.core.schedule.verify_step import Verification
from outrider.core.verify.selection import Candidates


class OwnGuessing(Generic[KeyT]):
    """Tell it of all sessions, and of steps that decided none with a drafter and read no prompt."""

    def __init__(self, policy: VerifyPolicy) -> None:
        """Decides by the gate of the `policy`, which changes while no session is there."""
        self._policy = policy

    def begin(self, session: Verification[KeyT]) -> None:
        """A session may guess from now on, if it may at all."""
        if session.opening.max_draft_tokens:
            self._policy.own_guessing.begin(greedy=session.opening.sampling.greedy)
            self._policy.own_guessing.start()  # no step that reads a prompt is told

    def end(self, session: Verification[KeyT]) -> None:
        """It is over."""
        if session.opening.max_draft_tokens:
            self._policy.own_guessing.end(greedy=session.opening.sampling.greedy)

    def candidates(self, sessions: Sequence[Seated[Verification[KeyT]]]) -> list[Candidates]:
        """What the next step of these may score. Who brought a prediction wants it tried."""
        found = [seated.session.rounds.candidates(seated.session.state) for seated in sessions]
        if self._policy.own_guessing.is_open or not are_alone(seated.session for seated in sessions):
            return found
        return [
            each if seated.session.opening.prediction_token_ids else each._replace(limit=0)
            for seated, each in zip(sessions, found, strict=True)
        ]

    def observe(self, session: Verification[KeyT], num_tokens: int, now: float) -> None:
        """A step without drafts has committed so many tokens of a session. Its last verdict is still the one before."""
        if session.opening.max_draft_tokens:
            self._policy.own_guessing.observe(num_tokens, now - session.last_verdict)


def are_alone(sessions: Iterable[Verification[KeyT]]) -> bool:
    """Whether none of them has drafts, or is to get any."""
    return not any(session.expect_drafts or session.state.tree.num_live for session in sessions)
