"""Whether sessions without a drafter guess by themselves.

A step's own time tells what it costs to score a guess. It does not tell what it costs to look for some: with eight
sampled sessions that was a tenth of a step, guesses or none. So what steps bring is compared with and without.
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
    """Tell it of all sessions, and what steps took that decided none with a drafter and read no prompt."""

    def __init__(self, policy: VerifyPolicy) -> None:
        """Decides by the gate of the `policy`, which changes while no session is there."""
        self._policy = policy
        self._num_sessions = 0

    def begin(self, session: Verification[KeyT]) -> None:
        """A session may guess from now on, if it may at all."""
        if session.opening.max_draft_tokens:
            self._num_sessions += 1
            self._policy.own_guessing.begin(greedy=session.opening.sampling.greedy)
            self._policy.own_guessing.start()  # no step that reads a prompt is told

    def end(self, session: Verification[KeyT]) -> None:
        """It is over."""
        if session.opening.max_draft_tokens:
            self._num_sessions -= 1
            self._policy.own_guessing.end(greedy=session.opening.sampling.greedy)

    def candidates(self, sessions: Sequence[Seated[Verification[KeyT]]]) -> list[Candidates]:
        """What the next step of these may score."""
        found = [seated.session.rounds.candidates(seated.session.state) for seated in sessions]
        if self._policy.own_guessing.is_open or not are_alone(seated.session for seated in sessions):
            return found
        return [each._replace(limit=0) for each in found]

    def observe(self, nums_committed: Iterable[int], seconds: float) -> None:
        """A step without drafts committed so many tokens of each session that might have guessed."""
        if self._num_sessions:  # not if all of them ended with it
            for num_tokens in nums_committed:
                self._policy.own_guessing.observe(num_tokens, seconds)


def are_alone(sessions: Iterable[Verification[KeyT]]) -> bool:
    """Whether none of them has drafts, or is to get any."""
    return not any(session.expect_drafts or session.state.tree.num_live for session in sessions)
