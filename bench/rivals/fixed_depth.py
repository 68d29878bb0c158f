"""Drafting and verifying in turn, always as many drafts: what speculation is without a second device (Leviathan,
Kalman, Matias, arXiv 2211.17192)."""

from __future__ import annotations

from dataclasses import replace

from bench.rivals.ruled import Policy
from bench.rivals.unchosen import all_that_may
from outrider.core.schedule.draft_depth import DraftDepth
from outrider.core.schedule.policy import DraftPolicy, VerifyPolicy


class FixedDepth(DraftDepth):
    """Always the same number of levels."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self._num_levels = num_levels

    def choose(self, num_greedy: int, num_sampled: int) -> int:
        """See `DraftDepth.choose`."""
        return self._num_levels


def chains(num_levels: int) -> Policy:
    """A chain of that length for each round, all of which is scored, and no other guesses."""
    return Policy(
        VerifyPolicy(looks_up=False, select=all_that_may),
        DraftPolicy(
            in_turn=True, opening=lambda opening: replace(opening, tree_width=1, max_run_ahead=max(1, num_levels))
        ),
    )
