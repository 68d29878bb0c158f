"""Guesses from what has been written before: an n-gram table that grows with the line.

A text repeats itself, and a model's text does so more than a human's. The table finds where the last few tokens of a
path have stood before and guesses what followed there. Of all orders that match, the longest speaks first and leaves
the rest of the probability to the next one, by Witten and Bell's rule (IEEE Transactions on Information Theory 37(4),
1991, method C): after N occurrences with u different continuations a new one is expected with probability u / (N + u).
A static table (`ngram_static.py`) may stand below the shortest order.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from outrider.core.propose.ngram_static import NEGLIGIBLE, TOKEN_BITS, StaticNgrams
from outrider.core.protocol.tree import Node

NGRAM_MODEL = "ngram"
"""What stands for the name of a draft model where there is none: guesses from what the text repeats alone."""

ORDERS = (4, 3, 2, 1)
"""Lengths of the contexts, longest first. Where the bundled target is greedy (54 prompts from files held out from the
draft, 192 tokens each) chains of 8 commit 5.09 tokens per round with orders 1 and 2, 5.37 with 1 to 3, 5.36 with these
and 5.43 with seven orders up to 12; at temperature 0.8 it is 1.60 or 1.61 with any of them."""

OCCURRENCES_MAX = 8
"""Most earlier occurrences of a context that are asked, newest first: recent ones count, and the cost is bounded. On
the same text 4, 8 and 16 differ by less than 0.02 tokens per round, and 1 loses 0.1 in trees of 16 nodes."""

HISTORY_TOKENS_MAX = 16_384
"""Tokens that a table remembers, the newest: it then takes about 5 MB, most of it for the contexts of four orders."""

PROBABILITY_MAX = 0.995
"""No guess is surer: of the surest tenth on greedy text 0.996 were right."""

_TRUST_MEMORY = 1 - 1 / 64
"""Weight of the past in the running hit rate, per committed token. Memories of 32, 64 and 128 differ by 0.002 nats per
guess on the same text; no hit rate at all costs 0.04 of 0.55 there at temperature 0.8."""

_TRUST_PRIOR = 8.0
"""Right guesses, of as many promised ones, that a line begins with. They fade like all others, so that where text never
repeats itself guesses become worth nothing."""

_TRUST_MIN = 1e-3
"""Trust stays above it, so that every guess has a logarithm."""

_CONTEXT_BITS = TOKEN_BITS * ORDERS[0]
"""Length of the longest context."""

_CONTEXT_MASK = (1 << _CONTEXT_BITS) - 1


class Guess(NamedTuple):
    """One token that may come next."""

    token_id: int
    probability: float
    """Estimate that it does, above 0 and at most PROBABILITY_MAX."""


class GuessTree(NamedTuple):
    """Guesses several tokens deep, most probable path first, so parents stand before children."""

    parents: list[int]
    """For each node the index of its parent, -1 for the context itself."""
    token_ids: list[int]
    probabilities: list[float]
    """For each node the estimate that its whole path is right."""


class _Order:
    """Where the contexts of one length have stood."""

    __slots__ = ("followers", "mask", "previous")

    def __init__(self, num_tokens: int) -> None:
        self.mask = (1 << (TOKEN_BITS * num_tokens)) - 1
        self.followers: dict[int, int] = {}
        """For each context the position of the token that followed it last."""
        self.previous = array("q")
        """For each position, modulo HISTORY_TOKENS_MAX, the position of the token that followed its context before."""


def extend(context: int, token_id: int) -> int:
    """The packed context after one more token: the newest in the lowest bits. A context starts as 0."""
    return (context << TOKEN_BITS | token_id) & _CONTEXT_MASK


def path_context(node: Node, root: Node, context: int) -> int:
    """The last tokens of the path to `node`, packed; `context` holds those of the line that ends at `root`."""
    packed = num_bits = 0
    while node is not root and num_bits < _CONTEXT_BITS:
        packed |= node.token_id << num_bits
        num_bits += TOKEN_BITS
        assert node.parent is not None
        node = node.parent
    return (context << num_bits | packed) & _CONTEXT_MASK


class NgramTable:
    """What one line tells about its own continuation. Token ids below VOCAB_SIZE_MAX are the caller's promise."""

    __slots__ = (
        "_contexts",
        "_found",
        "_num_promised",
        "_num_right",
        "_num_tokens",
        "_orders",
        "_static",
        "_token_ids",
        "context",
        "trust",
    )

    def __init__(self, token_ids: Iterable[int] = (), static: StaticNgrams | None = None) -> None:
        """Begins with a line. Below what it tells itself stands the `static` table, if there is one."""
        self.context = 0
        """The line's last tokens, packed."""
        self._static = static
        self._orders = [_Order(num_tokens) for num_tokens in ORDERS]
        self._num_tokens = 0
        self._token_ids = array("I")
        self._contexts: list[int] = []
        """For each position, modulo HISTORY_TOKENS_MAX, its token and what stood before it."""
        self._found: dict[int, dict[int, float]] = {}
        """What was found for contexts since the last commit: who asks what follows a guess may soon commit it."""
        self._num_right = self._num_promised = _TRUST_PRIOR
        self.trust = 1.0
        """How often first guesses were right of late, relative to what the counts promised. Multiplies every estimate.

        Sampled text follows its own past less than greedy text does, which the counts alone find out too slowly.
        """
        self.read(token_ids)

    def read(self, token_ids: Iterable[int]) -> None:
        """Appends tokens that nobody had to guess."""
        for token_id in token_ids:
            self._append(token_id)
        self._found.clear()

    def commit(self, token_ids: Iterable[int]) -> None:
        """Appends tokens that were decided, and learns from each how far guesses can be trusted."""
        for token_id in token_ids:
            shares = self._shares(self.context)
            if shares:
                best = max(shares, key=shares.__getitem__)
                self._num_right = self._num_right * _TRUST_MEMORY + (best == token_id)
                self._num_promised = self._num_promised * _TRUST_MEMORY + shares[best]
                self.trust = max(self._num_right / self._num_promised, _TRUST_MIN)
            self._append(token_id)
        self._found.clear()

    def guesses(self, context: int, limit: int) -> list[Guess]:
        """At most `limit` tokens that followed `context` before, most probable first; none if nothing is known.

        Among equals the one of the longer match comes first, then the more recent one. Their probabilities sum to less
        than 1; the rest is the chance of something else.
        """
        probabilities = self.probabilities(context)
        ranked = sorted(probabilities, key=probabilities.__getitem__, reverse=True)
        return [Guess(token_id, probabilities[token_id]) for token_id in ranked[:limit]]

    def probabilities(self, context: int) -> dict[int, float]:
        """The same for all tokens that followed `context` before, not yet ranked."""
        shares = self._shares(context)
        if not shares:
            return shares
        total = 0.0
        for share in shares.values():  # `sum` rounds otherwise from Python 3.12 on
            total += share
        scale = min(self.trust, PROBABILITY_MAX / total)
        return {token_id: share * scale for token_id, share in shares.items()}

    def after(self, root: Node, node: Node) -> dict[int, float]:
        """See `Ngrams.after`."""
        return self.probabilities(path_context(node, root, self.context))

    def tree(self, context: int, *, limit: int, width: int, min_probability: float = 0.0) -> GuessTree:
        """The at most `limit` guesses below `context` with the most probable paths, at most `width` below each node.

        Paths less probable than `min_probability` are left out. Width 1 makes a chain.
        """
        found = GuessTree([], [], [])
        # Minus the path's probability, order of arrival, token, parent, the parent's context.
        candidates: list[tuple[float, int, int, int, int]] = []
        num_seen = 0
        parent, path_probability = -1, 1.0
        while len(found.parents) < limit:
            for token_id, probability in self.guesses(context, width):
                if path_probability * probability >= min_probability:
                    num_seen += 1
                    heapq.heappush(candidates, (-path_probability * probability, num_seen, token_id, parent, context))
            if not candidates:
                break
            negative, _, token_id, above, context_above = heapq.heappop(candidates)
            parent, path_probability = len(found.parents), -negative
            context = extend(context_above, token_id)
            found.parents.append(above)
            found.token_ids.append(token_id)
            found.probabilities.append(path_probability)
        return found

    def _shares(self, context: int) -> dict[int, float]:
        """What the counts say of each token that followed `context`, in the order of `guesses` among equals."""
        found = self._found.get(context)
        if found is not None:
            return found
        shares: dict[int, float] = {}
        self._found[context] = shares
        rest = 1.0
        oldest = max(self._num_tokens - HISTORY_TOKENS_MAX, 0)
        token_ids = self._token_ids
        for order in self._orders:
            position = order.followers.get(context & order.mask)
            if position is None:
                continue
            previous = order.previous
            index = position % HISTORY_TOKENS_MAX
            token_id = token_ids[index]
            position = previous[index]
            if position < oldest:  # as most contexts it stood there once
                rest *= 0.5
                shares[token_id] = shares.get(token_id, 0.0) + rest
            else:
                counts = {token_id: 1}
                num_occurrences = 1
                while position >= oldest and num_occurrences < OCCURRENCES_MAX:
                    index = position % HISTORY_TOKENS_MAX
                    token_id = token_ids[index]
                    counts[token_id] = counts[token_id] + 1 if token_id in counts else 1
                    num_occurrences += 1
                    position = previous[index]
                share = rest / (num_occurrences + len(counts))
                for token_id, count in counts.items():
                    shares[token_id] = shares.get(token_id, 0.0) + share * count
                rest = share * len(counts)
            if rest < NEGLIGIBLE:
                return shares
        if self._static is not None:
            self._static.add_shares(context, rest, shares)
        return shares

    def _append(self, token_id: int) -> None:
        context, position = self.context, self._num_tokens
        if position < HISTORY_TOKENS_MAX:
            for order in self._orders:
                key = context & order.mask
                order.previous.append(order.followers.get(key, -1))
                order.followers[key] = position
            self._token_ids.append(token_id)
            self._contexts.append(context)
        else:
            self._replace(position % HISTORY_TOKENS_MAX, token_id)
        self.context = extend(context, token_id)
        self._num_tokens = position + 1

    def _replace(self, index: int, token_id: int) -> None:
        """Puts the newest token in the place of the oldest."""
        context, position = self.context, self._num_tokens
        forgotten = position - HISTORY_TOKENS_MAX
        for order in self._orders:
            followers = order.followers
            stale = self._contexts[index] & order.mask
            if followers[stale] == forgotten:
                del followers[stale]
            key = context & order.mask
            order.previous[index] = followers.get(key, -1)
            followers[key] = position
        self._token_ids[index] = token_id
        self._contexts[index] = context
