"""Guesses that are right as often as they are told to be, each place independent of the others.

The literature's model of speculation: every draft token is the target's with the same chance alpha (Leviathan, Kalman,
Matias, arXiv 2211.17192, section 3.1).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from outrider.core.draft.session import DraftSession
from outrider.core.protocol.line import Line
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node

PROMPT = (3, 1, 4)

VOCAB_SIZE = 48
"""Tokens that are told apart: more than guesses for a place, fewer than any model has."""

SIBLING_SHARE = 0.5
"""A further sibling is right, where those before it are wrong, with this share of alpha. Then three children hold the
true token with 0.75 + 0.25 * (1 - 0.625 ** 2) = 0.90 where the first one does with 0.75; for the bundled pair at
temperature 0.8 bench/results/bundled.json has 0.75 and 0.92."""


class Oracle:
    """The target's token at each position, and where it stands among the draft's guesses."""

    def __init__(self, alpha: float, num_positions: int, *, width: int, seed: int = 0) -> None:
        """`width` guesses for each place. The same arguments give the same tokens."""
        rng = random.Random(seed)
        probabilities = [alpha]
        rest = 1.0 - alpha
        for _ in range(1, width):
            probabilities.append(rest * SIBLING_SHARE * alpha)
            rest *= 1.0 - SIBLING_SHARE * alpha
        self._tokens = [rng.randrange(VOCAB_SIZE) for _ in range(num_positions + 1)]
        self._ranks = [_rank(rng.random(), probabilities) for _ in range(num_positions + 1)]
        self.log_probs = [math.log(max(probability, 1e-9)) for probability in probabilities]
        """Of the guesses, first to last: the draft knows how often each is right."""
        first, *others = self.log_probs
        self.margins = [first - max(others, default=-math.inf), *(first - log_prob for log_prob in others)]
        """The same as a sampler tells it; see `Sampler.propose`."""

    def token(self, position: int) -> int:
        """The target's choice."""
        return self._tokens[position]

    def guesses(self, position: int) -> list[int]:
        """The draft's, likeliest first and all different."""
        true, rank = self._tokens[position], self._ranks[position]
        guesses = [(true + 1 + each) % VOCAB_SIZE for each in range(len(self.log_probs))]
        if rank is not None:
            guesses[rank] = true
        return guesses


class OracleText:
    """A text after `prompt`, as a `VirtualStack` wants it."""

    vocab_size = VOCAB_SIZE
    sampling = SamplingParams()

    def __init__(
        self, alpha: float, num_tokens: int, *, width: int, seed: int = 0, prompt: Sequence[int] = PROMPT
    ) -> None:
        """An answer of `num_tokens`; the rest as for `Oracle`."""
        self.prompt = prompt
        self.length = len(prompt) + num_tokens
        self._oracle = Oracle(alpha, self.length, width=width, seed=seed)

    def token(self, position: int) -> int:
        """The answer's at a position of the line."""
        return self._oracle.token(position)

    def next_token(self, line: Line, node: Node) -> int:
        """See `Text.next_token`: the same on every path."""
        return self._oracle.token(node.position + 1)

    def propose(self, session: DraftSession, nodes: Sequence[Node]) -> list[tuple[list[int], list[float]]]:
        """See `Text.propose`."""
        return [(self._oracle.guesses(node.position + 1), self._oracle.margins) for node in nodes]


def _rank(draw: float, probabilities: Sequence[float]) -> int | None:
    for rank, probability in enumerate(probabilities):
        draw -= probability
        if draw < 0.0:
            return rank
    return None
