"""What bounds the drafts of a line: vLLM's configuration, and the pool's."""

from __future__ import annotations

from typing import NamedTuple

from outrider.core.protocol.validation import RUN_AHEAD_MAX, TREE_WIDTH_MAX

RUN_AHEAD_PER_TOKEN = 8
"""Nodes beyond the line for each token of a chain and the one that follows it: two rounds, and four guesses a place."""


class Limits(NamedTuple):
    """Bounds that all lines share."""

    vocab_size: int
    """The target's: drafted ids are below it."""
    max_length: int
    """Most tokens of a line."""
    num_speculative_tokens: int
    """Most draft tokens that a step verifies for a line."""
    tree_width: int
    """Children per drafted node; 0: as many as are worth it."""

    @property
    def max_run_ahead(self) -> int:
        """Most nodes that a drafter sends beyond the line."""
        wanted = RUN_AHEAD_PER_TOKEN * (self.num_speculative_tokens + 1)
        return min(max(wanted, TREE_WIDTH_MAX), RUN_AHEAD_MAX)
