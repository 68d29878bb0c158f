"""Time per token of drafting and verifying, in verify steps: what the literature expects, and what bounds it.

`alpha` is the chance that a draft token is the target's, taken as independent of its place; `draft_step` the time of a
draft step in verify steps (the literature's c); `delay` the one-way time between the devices in verify steps (L).
"""

from __future__ import annotations

LOOKAHEAD_MAX = 32
"""Longest lookahead that is tried. At an acceptance of 0.95 the 32nd draft token still stands with 0.19, but on the
plane that is mapped the best lookahead stays below it."""


def expected_tokens(alpha: float, lookahead: int) -> float:
    """Tokens that a round with `lookahead` drafts commits (Leviathan, Kalman, Matias, arXiv 2211.17192, equation 1)."""
    return sum(alpha**depth for depth in range(lookahead + 1))


def synchronous(alpha: float, draft_step: float, lookahead: int, delay: float = 0.0) -> float:
    """Drafting and verifying in turn: each round costs its drafts, one verify step and a message each way."""
    return (lookahead * draft_step + 1.0 + 2.0 * delay) / expected_tokens(alpha, lookahead)


def best_in_turn(alpha: float, draft_step: float, delay: float = 0.0) -> tuple[int, float]:
    """The best lookahead of drafting and verifying in turn, and its time per token."""
    lookahead = min(range(1, LOOKAHEAD_MAX + 1), key=lambda each: synchronous(alpha, draft_step, each, delay))
    return lookahead, synchronous(alpha, draft_step, lookahead, delay)


def asynchronous(alpha: float, draft_step: float, delay: float = 0.0) -> float:
    """A drafter that runs ahead on a device of its own, with one chain.

    A rejected token costs a verify step, and a message each way where the next ones need the drafter's new branch; an
    accepted one costs a draft step. Branches drafted beforehand do better, most where the delay is long; a drafter far
    faster than its verifier does worse, since a round verifies so many tokens and no more.
    """
    return (1.0 - alpha) * (1.0 + 2.0 * alpha * delay) + alpha * draft_step


def roofline(alpha: float) -> float:
    """What no single verifier undercuts: a token that was not drafted right costs a verify step."""
    return 1.0 - alpha
