"""Many sessions that share a drafter and a verifier, on a virtual clock: the services' own schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.rivals.ruled import Policy, policy_of

from .virtual_pair import PROMPT, Circumstances


class CrowdOutcome(NamedTuple):
    """What a run came to."""

    seconds_per_token: float
    """Of all sessions together, until the first of them ends."""
    rounds_per_step: float
    """Sessions that took part in a verify step, on average."""
    longest_gap: float
    """Most verify steps in a row that a session which was not finished took no part in."""
    token_ids: list[Sequence[int]]


def run_crowd(circumstances: Circumstances, num_sessions: int, policy: Policy | None = None) -> CrowdOutcome:
    """Until every line has ended. The workers know what they have learned by `policy` before."""
    stack = circumstances.stack(num_sessions, policy or policy_of(None))
    everybody = range(num_sessions)
    stack.run(lambda: any(map(stack.is_done, everybody)))
    seconds_per_token = stack.clock.now / sum(stack.num_committed)
    stack.clock.run(lambda: all(map(stack.is_done, everybody)))
    stack.clock.run(lambda: all(len(each.line) == len(PROMPT) + circumstances.num_tokens for each in stack.sessions))
    steps = stack.verifier.steps
    num_missed = [0] * num_sessions
    longest_gap = 0
    for members, waiting in steps:
        for index in waiting:
            num_missed[index] = 0 if index in members else num_missed[index] + 1
            longest_gap = max(longest_gap, num_missed[index])
    return CrowdOutcome(
        seconds_per_token,
        sum(len(members) for members, _ in steps) / len(steps),
        longest_gap,
        [session.line.token_ids[len(PROMPT) :] for session in stack.sessions],
    )
