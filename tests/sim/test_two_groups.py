"""Two groups of sessions on a virtual clock: a host that is busy between steps, and a device that need not wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from bench.rivals.ruled import Policy, policy_of
from bench.simulate.virtual import VirtualStack
from outrider.core.estimate.overlap import Overlap

from .toys import ToyTarget
from .virtual_pair import PROMPT, VOCAB_SIZE, Circumstances, flat, sloped

NUM_TOKENS = 60

MEASURED_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""As in `outrider.engine.step_times`."""

COMPUTE_BOUND = sloped(1e-3, 0.5)
"""What each session adds takes half as long as the first one alone."""
MEMORY_BOUND = sloped(4e-3, 0.01)
"""Reading the weights takes nearly all of it."""


class Run(NamedTuple):
    """What became of some sessions."""

    seconds: float
    busy: float
    """Share of the time in which the verifier's device computed."""
    token_ids: list[list[int]]


def learn(policy: Policy, verify_step: Callable[[int], float]) -> None:
    """What a worker measures at its start."""
    policy.verify.estimates.restart((size, verify_step(size)) for size in MEASURED_SIZES)


def run(num_sessions: int, verify_step: Callable[[int], float], rest: float, *, overlap: bool) -> Run:
    """Until all have ended. Nothing is drafted in time, so that all is the verifier's matter."""
    policy = policy_of(None)
    policy.verify.looks_up = False
    learn(policy, verify_step)
    policy.verify.overlap = Overlap() if overlap else None
    given = Circumstances(
        draft_step=flat(1e9), verify_step=verify_step, coverage=(0.5,), num_tokens=NUM_TOKENS, rest=rest
    )
    stack: VirtualStack = given.stack(num_sessions, policy)
    for index in range(num_sessions):
        stack.verifier.end_drafts(index)
    everybody = range(num_sessions)
    stack.run(lambda: all(map(stack.is_done, everybody)))
    tokens = [session.line.token_ids[len(PROMPT) :] for session in stack.sessions]
    return Run(stack.clock.now, stack.work.busy["verify"] / stack.clock.now, tokens)


@pytest.mark.parametrize(("num_sessions", "rest"), [(2, 1e-3), (5, 1e-3), (8, 3e-3), (16, 4e-3)])
def test_a_busy_host_is_hidden_behind_the_device(num_sessions: int, rest: float) -> None:
    one = run(num_sessions, COMPUTE_BOUND, rest, overlap=False)
    two = run(num_sessions, COMPUTE_BOUND, rest, overlap=True)
    groups = (num_sessions + 1) // 2, num_sessions // 2
    steps = [COMPUTE_BOUND(size) for size in groups]
    pace = max(sum(steps), 2 * rest, steps[0] + rest)
    assert one.seconds == pytest.approx(NUM_TOKENS * (COMPUTE_BOUND(num_sessions) + rest), rel=0.02)
    assert two.seconds == pytest.approx(NUM_TOKENS * pace, rel=0.05)
    assert two.seconds < 0.95 * one.seconds
    assert two.busy > one.busy


@pytest.mark.parametrize(
    ("num_sessions", "verify_step", "rest"),
    [(1, COMPUTE_BOUND, 1e-3), (8, MEMORY_BOUND, 0.5e-3), (8, COMPUTE_BOUND, 0.1e-3), (8, COMPUTE_BOUND, 0.0)],
)
def test_where_it_does_not_pay_everything_happens_as_without(
    num_sessions: int, verify_step: Callable[[int], float], rest: float
) -> None:
    assert run(num_sessions, verify_step, rest, overlap=True) == run(num_sessions, verify_step, rest, overlap=False)


def test_texts_are_those_of_the_target_alone() -> None:
    for index, token_ids in enumerate(run(5, COMPUTE_BOUND, 2e-3, overlap=True).token_ids):
        alone, _ = ToyTarget(5 + index, VOCAB_SIZE).decode_alone(
            PROMPT, len(PROMPT) + NUM_TOKENS, frozenset(), ignore_eos=True
        )
        assert token_ids == alone[:NUM_TOKENS]


@pytest.mark.parametrize("num_sessions", [2, 6])
@pytest.mark.parametrize("verify_step", [COMPUTE_BOUND, MEMORY_BOUND])
def test_with_drafts_too_texts_are_the_same_and_it_is_hardly_ever_slower(
    num_sessions: int, verify_step: Callable[[int], float]
) -> None:
    given = Circumstances(
        draft_step=sloped(0.4e-3, 0.03),
        verify_step=verify_step,
        coverage=(0.55, 0.67, 0.75, 0.8),
        hop=0.2e-3,
        num_tokens=NUM_TOKENS,
        rest=1e-3,
    )
    seconds: list[float] = []
    for overlap in (None, Overlap()):
        policy = policy_of(None)
        policy.verify.overlap = overlap
        learn(policy, verify_step)
        stack = given.stack(num_sessions, policy)
        stack.run(lambda stack=stack: all(len(each.line) == len(PROMPT) + NUM_TOKENS for each in stack.sessions))
        seconds.append(stack.clock.now)
        for index, session in enumerate(stack.sessions):
            alone, _ = ToyTarget(5 + index, VOCAB_SIZE).decode_alone(
                PROMPT, len(PROMPT) + NUM_TOKENS, frozenset(), ignore_eos=True
            )
            assert session.line.token_ids[len(PROMPT) :] == alone
    assert seconds[1] < 1.06 * seconds[0]
