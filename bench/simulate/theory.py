"""What time per token the literature expects of rivals, and bounds: to stand beside what was measured, in verify steps.

`alpha` is the chance that a draft token is the target's, taken as independent of its place; `draft_step` the time of a
draft step in verify steps (the literature's c); `delay` the one-way time between the devices in verify steps (L).
"""

from __future__ import annotations


def pearl(alpha: float, draft_step: float, lookahead: int, delay: float = 0.0) -> float:
    """PEARL (arXiv 2408.11850) with windows of `lookahead` drafts: both devices meet at a barrier after each window.

    After a rejection a window commits one token, which the first draft matches with `alpha`; then each window commits
    as many as stand of `lookahead`, and the next one goes on if all do.
    """
    window = max(1.0, lookahead * draft_step) + 2.0 * delay
    stand = alpha**lookahead
    # Rounds come in runs: one before which nothing is drafted, then a geometric number of rounds over whole windows.
    tokens_per_round = (1.0 - stand) / ((1.0 - alpha) * (1.0 - stand + alpha)) if alpha < 1.0 else float(lookahead)
    return window / tokens_per_round


def chain_bound(alpha: float, draft_step: float) -> float:
    """The roofline of a chain: every rejection costs a verify step, and a drafter makes a token per step."""
    return max(draft_step, 1.0 - alpha)


def tree_bound(alpha_of_children: float) -> float:
    """The roofline with branches: `alpha_of_children` is the chance that the true token is among the drafted."""
    return 1.0 - alpha_of_children
